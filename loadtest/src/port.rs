//! Ports for servers that go away and come back, and for very many clients. The servers' lie below
//! those that the kernel gives to outgoing connections: otherwise a client that calls while the server
//! is away may be given that very port, be connected to itself, and keep the server from coming back.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use mio::net::TcpStream;
use rustix::io::Errno;
use socket2::{Domain, SockRef, Socket, Type};

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
    let place = |turn: u16| {
        let turn = u32::from(turn) * 7 + u32::from(start);
        LOWEST + (turn % u32::from(count)) as u16
    };
    (0..count)
        .map(|_| place(TAKEN.fetch_add(1, Ordering::Relaxed)))
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .context("no port is free")
}

/// Clients that share an address. The kernel hands out every other one of 28,000 ports, and to look
/// for one of the last that are free takes it longer than all the rest of a connection.
const SHARING: usize = 8000;

/// Begins to connect the client of this number. On the loopback others have another address. Whoever
/// drops it cuts it off: the port of a connection that was closed in order is not free for a minute, and
/// the next round would look for others.
pub fn connect(server: SocketAddr, number: usize) -> Result<TcpStream> {
    let more = (number / SHARING).min(250) as u8;
    let stream = if more == 0 || !server.is_ipv4() {
        TcpStream::connect(server)?
    } else {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.bind(&SocketAddr::from((Ipv4Addr::new(127, 0, 0, 1 + more), 0)).into())?;
        match socket.connect(&server.into()) {
            Err(error) if !is_under_way(&error) => return Err(error.into()),
            _ => TcpStream::from_std(socket.into()),
        }
    };
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    Ok(stream)
}

fn is_under_way(error: &std::io::Error) -> bool {
    error.kind() == ErrorKind::WouldBlock || error.raw_os_error() == Some(Errno::INPROGRESS.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn very_many_clients_have_several_addresses() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        for (number, address) in [(0, [127, 0, 0, 1]), (SHARING, [127, 0, 0, 2])] {
            let _client = connect(listener.local_addr().unwrap(), number).unwrap();
            assert_eq!(listener.accept().unwrap().1.ip(), Ipv4Addr::from(address));
        }
    }

    #[test]
    fn a_port_is_free_and_given_out_once() {
        let ports = [free().unwrap(), free().unwrap()];
        assert_ne!(ports[0], ports[1]);
        assert!(ports.iter().all(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()));
    }
}
