//! One connection and the request on it.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd as _;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket};

use super::Failure;
use super::answer::Answer;

/// What all connections of a load have in common.
#[derive(Debug)]
pub(super) struct Common {
    pub(super) epoll: Epoll,
    pub(super) to: SocketAddr,
    pub(super) request: Vec<u8>,
    /// Whether each request gets a connection of its own.
    pub(super) close: bool,
    /// What is read goes here; nothing of it is kept.
    pub(super) buffer: Vec<u8>,
}

/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Job {
    /// When it was due, in nanoseconds of the monotonic clock.
    pub(super) due: u64,
    /// Whether it belongs to what is reported, and not to the warm-up.
    pub(super) counted: bool,
}

/// What has become of a slot in one step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// A connection was made.
    pub(super) opened: bool,
    /// No connection was made, and no request waited for it.
    pub(super) unopened: Option<Failure>,
    /// A request has ended: answered with a status, or failed.
    pub(super) ended: Option<(Job, Result<u16, Failure>)>,
    /// The slot can take a request now, and could not before.
    pub(super) freed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Without a connection; the next request makes one.
    Down,
    Connecting,
    Open,
    /// Answered; the server is to close.
    Closing,
}

/// A place for one connection.
#[derive(Debug)]
pub(super) struct Slot {
    number: u32,
    /// Tells events of this connection from those of the last one in this place.
    generation: u32,
    phase: Phase,
    stream: Option<TcpStream>,
    job: Option<Job>,
    closing_since: u64,
    written: usize,
    answer: Answer,
}

impl Slot {
    pub(super) fn new(number: u32) -> Self {
        Self {
            number,
            generation: 0,
            phase: Phase::Down,
            stream: None,
            job: None,
            closing_since: 0,
            written: 0,
            answer: Answer::default(),
        }
    }

    /// Place and generation that an event is for.
    pub(super) fn of_event(data: u64) -> (u32, u32) {
        ((data & u64::from(u32::MAX)) as u32, (data >> 32) as u32)
    }

    pub(super) fn is_of(&self, generation: u32) -> bool {
        self.generation == generation
    }

    pub(super) fn job(&self) -> Option<Job> {
        self.job
    }

    /// When the request was due that is under way, or whose connection the server is to close.
    pub(super) fn since(&self) -> Option<u64> {
        let closing = (self.phase == Phase::Closing).then_some(self.closing_since);
        self.job.map(|job| job.due).or(closing)
    }

    pub(super) fn is_connecting(&self) -> bool {
        self.phase == Phase::Connecting
    }

    fn is_free(&self) -> bool {
        self.job.is_none() && matches!(self.phase, Phase::Down | Phase::Open)
    }

    /// Makes the connection before there is a request for it; no request is given to the slot meanwhile.
    pub(super) fn open(&mut self, common: &Common) -> Progress {
        let mut progress = Progress::default();
        self.connect(common, &mut progress);
        progress.freed = self.is_free();
        progress
    }

    /// Takes a request; the slot is free.
    pub(super) fn take(&mut self, job: Job, common: &Common) -> Progress {
        self.job = Some(job);
        self.written = 0;
        let mut progress = Progress::default();
        match self.phase {
            Phase::Open => self.write(common, &mut progress),
            _ => self.connect(common, &mut progress),
        }
        progress.freed = self.is_free();
        progress
    }

    /// Goes on after an event.
    pub(super) fn ready(&mut self, events: EpollFlags, common: &mut Common) -> Progress {
        self.step(|slot, progress| {
            if slot.phase == Phase::Connecting {
                slot.connected(events, progress);
            }
            if events.contains(EpollFlags::EPOLLOUT) && slot.phase == Phase::Open && slot.job.is_some() {
                slot.write(common, progress);
            }
            let ending = EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR;
            if events.intersects(EpollFlags::EPOLLIN | ending) {
                slot.read(events.intersects(ending), common, progress);
            }
        })
    }

    /// Gives up what it does, for this reason.
    pub(super) fn give_up(&mut self, why: Failure) -> Progress {
        self.step(|slot, progress| slot.fail(why, progress))
    }

    fn step(&mut self, work: impl FnOnce(&mut Self, &mut Progress)) -> Progress {
        let mut progress = Progress::default();
        let was_free = self.is_free();
        work(self, &mut progress);
        progress.freed = self.is_free() && !was_free;
        progress
    }

    fn connect(&mut self, common: &Common, progress: &mut Progress) {
        self.down();
        match dial(common, u64::from(self.generation) << 32 | u64::from(self.number)) {
            Ok(stream) => {
                self.stream = Some(stream);
                self.phase = Phase::Connecting;
            }
            Err(e) => self.fail(Failure::of_connect(&e), progress),
        }
    }

    fn connected(&mut self, events: EpollFlags, progress: &mut Progress) {
        let Some(stream) = &self.stream else { return };
        match stream.take_error() {
            Ok(None) if events.contains(EpollFlags::EPOLLOUT) => {
                self.phase = Phase::Open;
                progress.opened = true;
            }
            Ok(None) => {}
            Ok(Some(e)) | Err(e) => self.fail(Failure::of_connect(&e), progress),
        }
    }

    fn write(&mut self, common: &Common, progress: &mut Progress) {
        let Some(stream) = &mut self.stream else { return };
        while let Some(rest) = common.request.get(self.written..).filter(|rest| !rest.is_empty()) {
            match stream.write(rest) {
                Ok(count) => self.written += count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => return self.fail(Failure::Reset, progress),
            }
        }
    }

    /// Reads until the socket is empty. As a rule a read that fills only part of the buffer was the last: what comes
    /// later is another event, unless the end has been told already.
    fn read(&mut self, ending: bool, common: &mut Common, progress: &mut Progress) {
        while let Some(stream) = &mut self.stream {
            match stream.read(&mut common.buffer) {
                Ok(0) => return self.ended(progress),
                Ok(count) => {
                    self.received(common.buffer.get(..count).unwrap_or_default(), common.close, progress);
                    if count < common.buffer.len() && !ending {
                        return;
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => return self.fail(Failure::Reset, progress),
            }
        }
    }

    fn received(&mut self, bytes: &[u8], close: bool, progress: &mut Progress) {
        let Some(job) = self.job else {
            // Nothing was asked, or it is answered already: whatever it is, the connection is out of step.
            return self.down();
        };
        match self.answer.feed(bytes) {
            Ok(None) => {}
            Ok(Some(end)) => {
                self.job = None;
                progress.ended = Some((job, judged(end.status)));
                if close {
                    self.phase = Phase::Closing;
                    self.closing_since = job.due;
                } else if !end.keep {
                    self.down();
                }
            }
            Err(_) => self.fail(Failure::Malformed, progress),
        }
    }

    /// The server has closed.
    fn ended(&mut self, progress: &mut Progress) {
        match (self.job, self.answer.close()) {
            (Some(job), Some(end)) => {
                self.job = None;
                progress.ended = Some((job, judged(end.status)));
                self.down();
            }
            (Some(_), None) => self.fail(Failure::Closed, progress),
            // It may close when nothing is asked.
            (None, _) => self.down(),
        }
    }

    fn fail(&mut self, why: Failure, progress: &mut Progress) {
        match self.job.take() {
            Some(job) => progress.ended = Some((job, Err(why))),
            None if matches!(self.phase, Phase::Connecting | Phase::Down) => progress.unopened = Some(why),
            None => {}
        }
        self.down();
    }

    fn down(&mut self) {
        self.stream = None;
        self.phase = Phase::Down;
        self.generation = self.generation.wrapping_add(1);
        self.answer.restart();
    }
}

fn judged(status: u16) -> Result<u16, Failure> {
    if (200..400).contains(&status) { Ok(status) } else { Err(Failure::Status) }
}

/// Begins a connection, and asks for its events: edges, so that one registration is enough for its life.
fn dial(common: &Common, data: u64) -> io::Result<TcpStream> {
    let family = if common.to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd = socket(family, SockType::Stream, flags, None)?;
    match connect(fd.as_raw_fd(), &SockaddrStorage::from(common.to)) {
        Ok(()) | Err(Errno::EINPROGRESS) => {}
        Err(e) => return Err(e.into()),
    }
    let stream = TcpStream::from(fd);
    stream.set_nodelay(true)?;
    let wanted = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
    common.epoll.add(&stream, EpollEvent::new(wanted, data))?;
    Ok(stream)
}
