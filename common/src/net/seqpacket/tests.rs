use super::*;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use std::fs::File;
use std::sync::atomic::{AtomicU32, Ordering};

/// A folder of its own for each test, gone afterwards.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name =
            format!("culvert-seqpacket-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        Self(std::env::temp_dir().join(name))
    }

    fn socket(&self) -> PathBuf {
        self.0.join("zds.sock")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _gone = fs::remove_dir_all(&self.0);
    }
}

#[tokio::test]
async fn packets_keep_their_bounds_and_descriptors() {
    let (one, other) = SeqPacket::pair().unwrap();
    let file = File::open("/dev/null").unwrap();
    one.send(b"first", &[]).await.unwrap();
    one.send(b"second", &[file.as_fd(), file.as_fd()]).await.unwrap();
    let first = other.recv(64).await.unwrap().unwrap();
    assert_eq!((&first.bytes[..], first.fds.len(), first.truncated), (&b"first"[..], 0, false));
    let second = other.recv(64).await.unwrap().unwrap();
    assert_eq!((&second.bytes[..], second.fds.len(), second.truncated), (&b"second"[..], 2, false));
    for fd in &second.fds {
        let flags = FdFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GETFD).unwrap());
        assert!(flags.contains(FdFlag::FD_CLOEXEC));
    }
    drop(one);
    assert!(other.recv(64).await.unwrap().is_none());
    assert_eq!(other.send(b"late", &[]).await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
}

#[tokio::test]
async fn what_is_too_long_is_marked() {
    let (one, other) = SeqPacket::pair().unwrap();
    one.send(&[7; 100], &[]).await.unwrap();
    let packet = other.recv(64).await.unwrap().unwrap();
    assert_eq!((packet.bytes.len(), packet.truncated), (64, true));
    one.send(&[7; 64], &[]).await.unwrap();
    assert!(!other.recv(64).await.unwrap().unwrap().truncated);
}

#[tokio::test]
async fn many_descriptors_arrive_and_too_many_are_not_sent() {
    let (one, other) = SeqPacket::pair().unwrap();
    let file = File::open("/dev/null").unwrap();
    one.send(b"x", &[file.as_fd(); FDS_MAX]).await.unwrap();
    assert_eq!(other.recv(1).await.unwrap().unwrap().fds.len(), FDS_MAX);
    for (bytes, count) in [(&b"x"[..], FDS_MAX + 1), (b"", 0)] {
        let refused = one.send(bytes, &vec![file.as_fd(); count]).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
    }
}

#[tokio::test]
async fn a_listener_has_the_permissions_asked_for_and_knows_its_peers() {
    let folder = Folder::new();
    let listener = SeqPacketListener::bind(&folder.socket(), 0o600).unwrap();
    assert_eq!(fs::metadata(folder.socket()).unwrap().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(&folder.0).unwrap().mode() & 0o777, 0o700);
    let client = SeqPacket::connect(&folder.socket()).unwrap();
    let server = listener.accept().await.unwrap();
    let own = nix::unistd::geteuid().as_raw();
    assert_eq!((client.peer_uid().unwrap(), server.peer_uid().unwrap()), (own, own));
    client.send(b"hello", &[]).await.unwrap();
    assert_eq!(server.recv(10).await.unwrap().unwrap().bytes, b"hello");
    drop(listener);
    assert!(!folder.socket().exists());
}

#[tokio::test]
async fn only_what_nobody_answers_at_is_replaced() {
    let folder = Folder::new();
    let path = folder.socket();
    let first = SeqPacketListener::bind(&path, 0o600).unwrap();
    assert_eq!(SeqPacketListener::bind(&path, 0o600).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    assert!(SeqPacket::connect(&path).is_ok(), "the first still listens");
    // As after a kill: the file stays, nobody listens.
    fs::hard_link(&path, folder.0.join("stale")).unwrap();
    drop(first);
    fs::rename(folder.0.join("stale"), &path).unwrap();
    assert_eq!(SeqPacket::connect(&path).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    let second = SeqPacketListener::bind(&path, 0o600).unwrap();
    assert!(SeqPacket::connect(&path).is_ok());
    drop(second);
    fs::write(&path, "a file").unwrap();
    assert_eq!(SeqPacketListener::bind(&path, 0o600).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(fs::read_to_string(&path).unwrap(), "a file");
    assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 1, "no draft is left");
}
