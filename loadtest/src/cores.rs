//! Which processor core does what: with server and client on a core each, neither takes time from
//! the other, and a figure per core means something.

use std::str::FromStr;

use anyhow::{Context, Result};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Which cores to use, as an option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CoreChoice {
    /// The first two that this process may use; none if there is only one.
    Auto,
    /// Leave it to the kernel.
    Off,
    These(Cores),
}

/// A core for the server, another for the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cores {
    pub server: usize,
    pub client: usize,
}

impl FromStr for CoreChoice {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            _ => {
                let numbers: Option<Vec<usize>> = text.split(',').map(|core| core.parse().ok()).collect();
                match numbers.as_deref() {
                    Some(&[server, client]) => Ok(Self::These(Cores { server, client })),
                    _ => Err("auto, off, or two numbers: SERVER,CLIENT"),
                }
            }
        }
    }
}

impl CoreChoice {
    pub fn cores(&self) -> Result<Option<Cores>> {
        match self {
            Self::Off => Ok(None),
            Self::These(cores) => Ok(Some(*cores)),
            Self::Auto => {
                let allowed = sched_getaffinity(None)?;
                let mut allowed = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
                Ok(allowed.next().zip(allowed.next()).map(|(server, client)| Cores { server, client }))
            }
        }
    }
}

/// Keeps the calling thread, and what it starts from now on, on one core.
pub fn pin_to(core: usize) -> Result<()> {
    let mut only = CpuSet::new();
    only.set(core);
    sched_setaffinity(None, &only).with_context(|| format!("cannot stay on core {core}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_given_as_two_numbers_or_a_word() {
        assert_eq!("0,3".parse(), Ok(CoreChoice::These(Cores { server: 0, client: 3 })));
        assert_eq!(("auto".parse(), "off".parse()), (Ok(CoreChoice::Auto), Ok(CoreChoice::Off)));
        for bad in ["", "1", "1,2,3", "a,b", "-1,0"] {
            assert!(bad.parse::<CoreChoice>().is_err(), "{bad}");
        }
    }
}
