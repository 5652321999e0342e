//! What crosses between nodes, counted frame by frame where it crosses.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

use super::error::At;
use super::{LabError, Place, wait_until};

/// Bigger than any frame, segmentation offload included.
const FRAME_MAX: usize = 70_000;
const RECEIVE_BUFFER: usize = 32 << 20;

/// Frames and payload of one TCP port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortCount {
    /// Frames.
    pub frames: u64,
    /// Bytes of TCP payload.
    pub bytes: u64,
}

/// What a [`Tap`] saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Frames of any kind.
    pub frames: u64,
    /// By the lower TCP port of a connection, which is the server's.
    pub ports: BTreeMap<u16, PortCount>,
    /// Frames whose payload contained a marker, by marker.
    pub markers: Vec<u64>,
    /// Frames that crossed but were not looked at: 0, or the proof is incomplete.
    pub missed: u64,
}

impl Seen {
    /// Count of one port.
    pub fn port(&self, port: u16) -> PortCount {
        self.ports.get(&port).copied().unwrap_or_default()
    }

    /// Frames that contained any marker.
    pub fn marked(&self) -> u64 {
        self.markers.iter().sum()
    }
}

/// A packet socket on the wire. Dropping it ends the watch.
#[derive(Debug)]
pub struct Tap {
    wire: Place,
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    before: u64,
    thread: Option<JoinHandle<Result<(), LabError>>>,
}

impl Tap {
    pub(super) fn start(wire: &Place, markers: &[&[u8]]) -> Result<Self, LabError> {
        let markers: Vec<Vec<u8>> = markers.iter().map(|m| m.to_vec()).collect();
        let (ports, fd) = wire.run(|| Ok::<_, LabError>((ports()?, open()?)))??;
        let before = wire.run(received)?;
        let seen = Arc::new(Mutex::new(Seen { markers: vec![0; markers.len()], ..Seen::default() }));
        let stop = Arc::new(AtomicBool::new(false));
        let (shared, ended) = (Arc::clone(&seen), Arc::clone(&stop));
        let thread = wire.thread(move || watch(&fd, &ports, &markers, (&shared, &ended)));
        Ok(Self { wire: wire.clone(), seen, stop, before, thread: Some(thread) })
    }

    /// What was seen up to now; waits until everything that has crossed was looked at.
    pub fn seen(&self) -> Result<Seen, LabError> {
        let crossed = || self.wire.run(received).map(|now| now.saturating_sub(self.before));
        let target = crossed()?;
        let all = || (lock(&self.seen).frames >= target).then_some(());
        // Late frames are not an error: `missed` tells.
        let _in_time = wait_until("all frames looked at", Duration::from_secs(2), all, String::new);
        let mut seen = lock(&self.seen).clone();
        seen.missed = target.saturating_sub(seen.frames);
        Ok(seen)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}

fn open() -> Result<OwnedFd, LabError> {
    let fd = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)
        .at(|| "open a packet socket on the wire".to_owned())?;
    setsockopt(&fd, sockopt::RcvBufForce, &RECEIVE_BUFFER).at(|| "size the packet socket".to_owned())?;
    setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::milliseconds(50))
        .at(|| "limit waits on the packet socket".to_owned())?;
    Ok(fd)
}

/// Interface numbers of the bridge's ports.
fn ports() -> Result<Vec<usize>, LabError> {
    let all = nix::net::if_::if_nameindex().at(|| "list the wire's interfaces".to_owned())?;
    let is_port = |name: &str| name.strip_prefix('n').is_some_and(|rest| rest.parse::<u32>().is_ok());
    let ports = all.into_iter().filter(|i| i.name().to_str().is_ok_and(is_port));
    Ok(ports.filter_map(|i| usize::try_from(i.index()).ok()).collect())
}

/// Frames the wire's ports have received in all.
fn received() -> u64 {
    let table = fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default();
    let of = |line: &str| {
        let (name, counts) = line.split_once(':')?;
        name.trim().strip_prefix('n')?.parse::<u32>().ok()?;
        counts.split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    table.lines().filter_map(of).sum()
}

fn watch(fd: &OwnedFd, ports: &[usize], markers: &[Vec<u8>], (seen, stop): (&Mutex<Seen>, &AtomicBool)) {
    let mut frame = vec![0; FRAME_MAX];
    while !stop.load(Ordering::Relaxed) {
        let (len, from) = match recvfrom::<LinkAddr>(fd.as_raw_fd(), &mut frame) {
            Ok(got) => got,
            Err(Errno::EAGAIN | Errno::EINTR) => continue,
            Err(e) => {
                // Seen stays behind what crossed: the caller is told through `missed`.
                let _reason = io::Error::from(e);
                return;
            }
        };
        // A frame is seen where it enters a port; on its way out it would be counted twice.
        let enters =
            from.is_some_and(|f| f.pkttype() != libc::PACKET_OUTGOING && ports.contains(&f.ifindex()));
        if enters {
            count(frame.get(..len).unwrap_or_default(), markers, &mut lock(seen));
        }
    }
}

fn count(frame: &[u8], markers: &[Vec<u8>], seen: &mut Seen) {
    seen.frames += 1;
    let Some((port, payload)) = tcp(frame) else { return };
    let count = seen.ports.entry(port).or_default();
    count.frames += 1;
    count.bytes += payload.len() as u64;
    for (marker, found) in markers.iter().zip(&mut seen.markers) {
        if !marker.is_empty() && payload.windows(marker.len()).any(|w| w == marker) {
            *found += 1;
        }
    }
}

/// The lower port and the payload of a TCP frame.
fn tcp(frame: &[u8]) -> Option<(u16, &[u8])> {
    let packet = frame.get(14..)?;
    let segment = match frame.get(12..14)? {
        [0x08, 0x00] => {
            let header = usize::from(packet.first()? & 0x0f) * 4;
            let total = usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]));
            let end = if total == 0 { packet.len() } else { total.min(packet.len()) };
            (*packet.get(9)? == 6).then_some(())?;
            packet.get(header..end)?
        }
        [0x86, 0xdd] => {
            let length = usize::from(u16::from_be_bytes([*packet.get(4)?, *packet.get(5)?]));
            let end = if length == 0 { packet.len() } else { (length + 40).min(packet.len()) };
            (*packet.get(6)? == 6).then_some(())?;
            packet.get(40..end)?
        }
        _ => return None,
    };
    let source = u16::from_be_bytes([*segment.first()?, *segment.get(1)?]);
    let destination = u16::from_be_bytes([*segment.get(2)?, *segment.get(3)?]);
    let header = usize::from(segment.get(12)? >> 4) * 4;
    Some((source.min(destination), segment.get(header..)?))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame_v4(payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([0x08, 0x00, 0x45, 0]);
        frame.extend(u16::try_from(40 + payload.len()).unwrap().to_be_bytes());
        frame.extend([0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend(40_000_u16.to_be_bytes());
        frame.extend(8080_u16.to_be_bytes());
        frame.extend([0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0, 0, 0, 0, 0, 0, 0]);
        frame.extend(payload);
        frame
    }

    #[test]
    fn a_segment_is_counted_by_its_server_port_and_searched() {
        let mut seen = Seen { markers: vec![0, 0], ..Seen::default() };
        count(&frame_v4(b"GET /secret"), &[b"secret".to_vec(), b"other".to_vec()], &mut seen);
        assert_eq!(seen.port(8080), PortCount { frames: 1, bytes: 11 });
        assert_eq!(seen.markers, [1, 0]);
        assert_eq!(seen.marked(), 1);
    }

    #[test]
    fn padding_after_the_packet_is_no_payload() {
        let mut frame = frame_v4(b"");
        frame.extend([0; 6]);
        let mut seen = Seen::default();
        count(&frame, &[], &mut seen);
        assert_eq!(seen.port(8080), PortCount { frames: 1, bytes: 0 });
    }

    #[test]
    fn short_and_foreign_frames_are_counted_as_frames_only() {
        let whole = frame_v4(b"x");
        for len in 0..whole.len() - 1 {
            let mut seen = Seen::default();
            count(&whole[..len], &[b"x".to_vec()], &mut seen);
            assert_eq!(seen.frames, 1);
            assert_eq!(seen.marked(), 0);
        }
    }
}
