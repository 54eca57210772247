//! Outgoing connections of very many clients, which share the ports of several loopback addresses.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use mio::net::TcpStream;
use rustix::io::Errno;
use socket2::{Domain, SockRef, Socket, Type};

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
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn very_many_clients_have_several_addresses() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        for (number, address) in [(0, [127, 0, 0, 1]), (SHARING, [127, 0, 0, 2])] {
            let _client = connect(listener.local_addr().unwrap(), number).unwrap();
            assert_eq!(listener.accept().unwrap().1.ip(), Ipv4Addr::from(address));
        }
    }
}
