//! Ports for servers that go away and come back. They lie below those that the kernel gives to outgoing
//! connections: otherwise a client that calls while the server is away may be given that very port, be
//! connected to itself, and keep the server from coming back.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Context as _, Result};

const LOWEST: u16 = 10_240;
/// Linux's own, where the kernel does not say.
const LOWEST_OUTGOING: u16 = 32_768;

/// A port of 127.0.0.1 that is free now, and that this process has not given out before.
pub fn free() -> Result<u16> {
    static TAKEN: AtomicU16 = AtomicU16::new(0);
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let end = range.split_whitespace().next().and_then(|low| low.parse().ok()).unwrap_or(LOWEST_OUTGOING);
    let count = end.saturating_sub(LOWEST).max(1);
    // Processes that run at the same time start at different places.
    let start = (std::process::id() % u32::from(count)) as u16;
    let place = |turn: u16| LOWEST + ((u32::from(turn) * 7 + u32::from(start)) % u32::from(count)) as u16;
    (0..count)
        .map(|_| place(TAKEN.fetch_add(1, Ordering::Relaxed)))
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .context("no port is free")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_free_and_given_out_once() {
        let ports = [free().unwrap(), free().unwrap()];
        assert_ne!(ports[0], ports[1]);
        assert!(ports.iter().all(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()));
    }
}
