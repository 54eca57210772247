//! Sends that share a system call, over real sockets. Where the system does not allow io_uring there
//! is nothing to look at but that it says so.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;

use super::*;

fn queue() -> Option<UringQueue> {
    UringQueue::open().inspect_err(|error| eprintln!("io_uring is not allowed here: {error}")).ok()
}

/// Our ends and those of the readers.
fn pairs(count: usize) -> (Vec<UnixStream>, Vec<UnixStream>) {
    (0..count).map(|_| UnixStream::pair().unwrap()).unzip()
}

fn read(mut socket: &UnixStream, length: usize) -> String {
    let mut bytes = vec![0; length];
    socket.read_exact(&mut bytes).unwrap();
    String::from_utf8(bytes).unwrap()
}

fn nothing_waits(socket: &UnixStream) -> bool {
    socket.set_nonblocking(true).unwrap();
    let read = (&*socket).read(&mut [0]);
    socket.set_nonblocking(false).unwrap();
    matches!(read, Err(error) if error.kind() == ErrorKind::WouldBlock)
}

/// What became of those sends that did not take all.
fn send(
    queue: &mut UringQueue,
    ours: &[UnixStream],
    texts: &[String],
) -> Vec<(usize, Option<Result<usize, ErrorKind>>)> {
    let sends: Vec<SocketWrite<'_>> = ours
        .iter()
        .zip(texts)
        .map(|(socket, text)| SocketWrite { socket: socket.as_fd(), bytes: text.as_bytes() })
        .collect();
    let mut short = Vec::new();
    queue.send(&sends, |i, written| {
        short.push((i, written.map(|written| written.map_err(|error| error.kind()))))
    });
    short
}

#[test]
fn each_socket_gets_its_bytes_however_often_the_queue_goes_round() {
    let Some(mut queue) = queue() else { return };
    let (ours, theirs) = pairs(MAX_SENDS);
    for (round, count) in (1..=MAX_SENDS).chain([MAX_SENDS, 1, MAX_SENDS]).enumerate() {
        let texts: Vec<String> = (0..count).map(|i| format!("{round} to {i}")).collect();
        assert_eq!(send(&mut queue, &ours[..count], &texts), []);
        for (socket, text) in theirs.iter().zip(&texts) {
            assert_eq!(&read(socket, text.len()), text);
        }
        assert!(theirs.iter().all(nothing_waits));
    }
}

#[test]
fn a_socket_that_is_full_or_broken_holds_up_nobody() {
    let Some(mut queue) = queue() else { return };
    let (ours, mut theirs) = pairs(5);
    // 0 takes all, 1 is full, 2 takes a part of something large, 3 has nobody at its end.
    ours[1].set_nonblocking(true).unwrap();
    while (&ours[1]).write(&[b'x'; 4096]).is_ok() {}
    ours[1].set_nonblocking(false).unwrap();
    drop(theirs.remove(3));
    let mut texts: Vec<String> = (0..5).map(|i| format!("text {i}")).collect();
    texts[2] = "y".repeat(8 << 20);

    let short = send(&mut queue, &ours, &texts);
    let [full, part, broken] = &short[..] else { panic!("{short:?}") };
    assert_eq!(*full, (1, Some(Err(ErrorKind::WouldBlock))), "although the socket itself would wait");
    assert!(matches!(part, (2, Some(Ok(taken))) if (1..8 << 20).contains(taken)), "{part:?}");
    assert_eq!(*broken, (3, Some(Err(ErrorKind::BrokenPipe))));
    assert_eq!((read(&theirs[0], 6), read(&theirs[3], 6)), ("text 0".into(), "text 4".into()));
    let (2, Some(Ok(taken))) = *part else { unreachable!() };
    assert_eq!(read(&theirs[2], taken), texts[2][..taken]);
    assert!(nothing_waits(&theirs[2]), "the rest is for whoever asked");
    assert!(queue.is_open(), "a socket's trouble is not the queue's");
}

#[test]
fn a_queue_that_fails_has_sent_nothing_and_tries_nothing_more() {
    let (ours, theirs) = pairs(2);
    for mut queue in [Some(UringQueue::closed()), failing()].into_iter().flatten() {
        for _ in 0..2 {
            assert_eq!(send(&mut queue, &ours, &["a".into(), "b".into()]), [(0, None), (1, None)]);
            assert!(theirs.iter().all(nothing_waits) && !queue.is_open());
        }
    }
}

/// A queue that the kernel lets nobody enter (`IORING_SETUP_R_DISABLED`, Linux 5.10).
fn failing() -> Option<UringQueue> {
    #[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
    return io_uring::IoUring::builder()
        .setup_r_disabled()
        .build(MAX_SENDS as u32)
        .map(|queue| UringQueue(Some(queue)))
        .ok();
    #[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
    return None;
}
