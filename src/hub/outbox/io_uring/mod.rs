//! Many sends in one system call, by io_uring (io_uring(7), Linux 5.6). An event goes to each
//! subscriber's own socket, and entering the kernel and returning is a tenth of what a send costs.
//!
//! Each send is non-blocking (`MSG_DONTWAIT`), so it is done when the call returns, and what the socket
//! did not take is queued in its outbox, as after an ordinary send.

use std::io;
use std::os::fd::BorrowedFd;

/// Sends in one call.
pub const MAX_SENDS: usize = 64;

/// The send was not attempted.
const NOT_ATTEMPTED: i32 = i32::MIN;

/// Bytes for a socket.
pub struct SocketWrite<'a> {
    /// The socket. It occurs once in a call: a part of one frame would be followed by another.
    pub socket: BorrowedFd<'a>,
    /// What it is to take.
    pub bytes: &'a [u8],
}

/// A thread's submission queue. Without one it attempts nothing.
pub struct UringQueue(Option<system::Queue>);

impl UringQueue {
    /// Opens a queue. Fails if the kernel is too old or its user (Docker, for example) forbids io_uring.
    pub fn open() -> io::Result<Self> {
        system::open().map(|queue| Self(Some(queue)))
    }

    /// A queue that attempts nothing.
    pub fn closed() -> Self {
        Self(None)
    }

    /// Whether it sends anything. After a failure it does not, for good.
    pub fn is_open(&self) -> bool {
        self.0.is_some()
    }

    /// Performs `sends`, at most [`MAX_SENDS`], as far as the sockets take them at once. `short` is called
    /// afterwards for each that was not sent in full: with how many bytes were sent, or `None` where
    /// nothing was attempted.
    pub fn send(
        &mut self,
        sends: &[SocketWrite<'_>],
        mut short: impl FnMut(usize, Option<io::Result<usize>>),
    ) {
        let mut results = [NOT_ATTEMPTED; MAX_SENDS];
        if let Some(queue) = &mut self.0
            && let Err(error) = system::run(queue, sends, &mut results)
        {
            tracing::warn!(%error, "io_uring failed: each write uses its own system call from now on");
            // What the kernel has not begun it never sees.
            self.0 = None;
        }
        for (i, (send, result)) in sends.iter().zip(results).enumerate() {
            match usize::try_from(result) {
                Ok(taken) if taken == send.bytes.len() => {}
                Ok(taken) => short(i, Some(Ok(taken))),
                Err(_) if result == NOT_ATTEMPTED => short(i, None),
                Err(_) => short(i, Some(Err(io::Error::from_raw_os_error(-result)))),
            }
        }
    }
}

#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod system {
    use std::io;
    use std::os::fd::AsRawFd as _;

    use io_uring::{Probe, opcode, types};

    use super::{MAX_SENDS, SocketWrite};

    pub(super) type Queue = io_uring::IoUring;

    const FLAGS: i32 = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;

    pub(super) fn open() -> io::Result<Queue> {
        let queue = Queue::new(MAX_SENDS as u32)?;
        let mut probe = Probe::new();
        queue.submitter().register_probe(&mut probe)?;
        let known = probe.is_supported(opcode::Send::CODE);
        if known { Ok(queue) } else { Err(io::ErrorKind::Unsupported.into()) }
    }

    /// Returns when nothing is under way: after an error the rest has not begun.
    pub(super) fn run(
        queue: &mut Queue,
        sends: &[SocketWrite<'_>],
        results: &mut [i32; MAX_SENDS],
    ) -> io::Result<()> {
        let mut sending = queue.submission();
        for (i, SocketWrite { socket, bytes }) in sends.iter().enumerate() {
            let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            let send = opcode::Send::new(types::Fd(socket.as_raw_fd()), bytes.as_ptr(), length).flags(FLAGS);
            #[expect(unsafe_code, reason = "the kernel reads through a pointer")]
            // SAFETY: the bytes are borrowed for as long as this function runs, and it does not return
            // before each send that the kernel has begun is over.
            let pushed = unsafe { sending.push(&send.build().user_data(i as u64)) };
            pushed.expect("the queue is empty, and has room for as many");
        }
        drop(sending);
        let mut over = 0;
        loop {
            let entered = queue.submit_and_wait(sends.len() - over);
            for done in queue.completion() {
                results[done.user_data() as usize] = done.result();
                over += 1;
            }
            let begun = sends.len() - queue.submission().len();
            match entered {
                _ if over == sends.len() => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if over == begun => return Err(error),
                Err(error) => {
                    tracing::error!(%error, "io_uring did not report the completion of a write");
                    std::process::abort();
                }
            }
        }
    }
}

#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
mod system {
    use std::convert::Infallible;
    use std::io;

    use super::{MAX_SENDS, SocketWrite};

    pub(super) type Queue = Infallible;

    pub(super) fn open() -> io::Result<Queue> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) fn run(queue: &mut Queue, _: &[SocketWrite<'_>], _: &mut [i32; MAX_SENDS]) -> io::Result<()> {
        match *queue {}
    }
}

#[cfg(test)]
mod tests;
