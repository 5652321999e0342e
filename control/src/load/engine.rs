//! The loop: sends what is due, takes what comes, and sleeps until the next of either.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};
use nix::sys::time::{TimeSpec, TimeValLike as _};
use nix::sys::timerfd::{ClockId as TimerClock, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::time::{ClockId, clock_gettime};

use super::error::At as _;
use super::report::Times;
use super::schedule::Schedule;
use super::slot::{Common, Job, Progress, Slot};
use super::{Failure, LoadError, Plan, Report};

/// What the timer's events carry; no slot has it.
const TIMER: u64 = u64::MAX;
/// Files beside the connections.
const FILES_BESIDE: u64 = 64;
/// Events taken at once.
const EVENTS: usize = 256;
/// How often limits and the stop flag are looked at.
const LOOK_EVERY: u64 = 50_000_000;
/// How long answers are waited for after a stop.
const STOP_GRACE: u64 = 100_000_000;

/// A load that runs.
#[derive(Debug)]
pub(super) struct Engine<'a> {
    plan: &'a Plan,
    stop: &'a AtomicBool,
    common: Common,
    timer: TimerFd,
    slots: Vec<Slot>,
    /// Slots that can take a request, the one that has been free for longest in front.
    free: VecDeque<u32>,
    /// Slots of a closed loop whose last request failed: they pause until the next look, so that nothing spins.
    resting: Vec<u32>,
    /// Requests on connections.
    busy: u32,
    clock: Clock,
    /// The next request that is to be sent; of an open loop, all before the one that is due now wait.
    next: u64,
    /// The request that the timer is set for.
    armed: Option<u64>,
    looked: u64,
    seen: Seen,
}

/// When what happens, in nanoseconds of the monotonic clock.
#[derive(Clone, Copy, Debug)]
struct Clock {
    start: u64,
    warm: u64,
    end: u64,
    /// No answer is waited for any longer.
    last: u64,
    schedule: Option<Schedule>,
    limit: u64,
}

/// What has been counted.
#[derive(Debug)]
struct Seen {
    latency: Times,
    unsent: Times,
    failures: BTreeMap<Failure, u64>,
    answered: u64,
    last_answer: u64,
    warm_up: [u64; 2],
    made: u64,
    unmade: u64,
    last_unmade: Failure,
    stopped: bool,
}

impl<'a> Engine<'a> {
    pub(super) fn new(plan: &'a Plan, stop: &'a AtomicBool) -> Result<Self, LoadError> {
        allow_files(plan.connections)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).at("make an epoll instance")?;
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(TimerClock::CLOCK_MONOTONIC, flags).at("make a timer")?;
        // An edge for each expiry: nothing has to be read.
        let wanted = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        epoll.add(&timer, EpollEvent::new(wanted, TIMER)).at("watch the timer")?;
        let common = Common {
            epoll,
            to: plan.target.to,
            request: plan.target.request(plan.close),
            close: plan.close,
            buffer: vec![0; 64 << 10],
        };
        let seen = Seen {
            latency: Times::new()?,
            unsent: Times::new()?,
            failures: Failure::ALL.into_iter().map(|failure| (failure, 0)).collect(),
            answered: 0,
            last_answer: 0,
            warm_up: [0; 2],
            made: 0,
            unmade: 0,
            last_unmade: Failure::Unanswered,
            stopped: false,
        };
        Ok(Self {
            plan,
            stop,
            common,
            timer,
            slots: (0..plan.connections).map(Slot::new).collect(),
            free: VecDeque::with_capacity(plan.connections as usize),
            resting: Vec::new(),
            busy: 0,
            clock: Clock::new(plan, now()?),
            next: 0,
            armed: None,
            looked: 0,
            seen,
        })
    }

    /// Opens the connections, sends what is due until the end, waits for the last answers.
    pub(super) fn run(mut self) -> Result<Report, LoadError> {
        let cpu = own_cpu();
        if self.plan.close {
            self.free.extend(0..self.plan.connections);
        } else {
            self.open_all()?;
        }
        self.clock = Clock::new(self.plan, now()?);
        loop {
            let time = now()?;
            if time >= self.looked + LOOK_EVERY {
                self.looked = time;
                self.look(time);
            }
            self.send(time)?;
            let all_sent = time >= self.clock.end && self.next >= self.clock.total(self.next);
            if (all_sent && self.busy == 0) || time >= self.clock.last {
                break;
            }
            self.wait(time)?;
        }
        self.finish(own_cpu() - cpu)
    }

    fn open_all(&mut self) -> Result<(), LoadError> {
        for number in 0..self.plan.connections {
            if let Some(slot) = self.slots.get_mut(number as usize) {
                let progress = slot.open(&self.common);
                self.account(number, progress)?;
            }
        }
        while self.slots.iter().any(Slot::is_connecting) {
            let time = now()?;
            if time >= self.clock.start + self.clock.limit || self.stop.load(Ordering::Relaxed) {
                for number in 0..self.plan.connections {
                    if let Some(slot) = self.slots.get_mut(number as usize).filter(|s| s.is_connecting()) {
                        let progress = slot.give_up(Failure::Unanswered);
                        self.account(number, progress)?;
                    }
                }
            } else {
                self.looked = time;
                self.wait(time)?;
            }
        }
        if self.seen.made == 0 && !self.stop.load(Ordering::Relaxed) {
            let why = self.seen.last_unmade.text();
            return Err(LoadError::Unreachable { to: self.common.to, why });
        }
        Ok(())
    }

    /// Sends all that is due and has a connection.
    fn send(&mut self, time: u64) -> Result<(), LoadError> {
        let Some(schedule) = self.clock.schedule else {
            while time < self.clock.end
                && let Some(number) = self.free.pop_front()
            {
                self.next += 1;
                // Each from when it begins: a closed loop knows no other time.
                self.give(number, Job { due: now()?, counted: time >= self.clock.warm })?;
            }
            return Ok(());
        };
        let due = schedule.count_before((time + 1).min(self.clock.end));
        while self.next < due && schedule.due(self.next).saturating_add(self.clock.limit) < time {
            self.ended(Job { due: 0, counted: self.is_counted(schedule) }, Err(Failure::NotSent))?;
            self.next += 1;
        }
        while self.next < due
            && let Some(number) = self.free.pop_front()
        {
            let job = Job { due: schedule.due(self.next), counted: self.is_counted(schedule) };
            self.next += 1;
            if job.counted {
                self.seen.unsent.record(time.saturating_sub(job.due));
            }
            self.give(number, job)?;
        }
        self.arm(schedule, due)
    }

    fn is_counted(&self, schedule: Schedule) -> bool {
        schedule.due(self.next) >= self.clock.warm
    }

    fn give(&mut self, number: u32, job: Job) -> Result<(), LoadError> {
        self.busy += 1;
        let Some(slot) = self.slots.get_mut(number as usize) else { return Ok(()) };
        let progress = slot.take(job, &self.common);
        self.account(number, progress)
    }

    /// Lets the timer fire when the next request is due. While others wait for a connection there is no need.
    fn arm(&mut self, schedule: Schedule, due: u64) -> Result<(), LoadError> {
        if self.next < due || self.armed == Some(due) {
            return Ok(());
        }
        self.armed = Some(due);
        let once = Expiration::OneShot(spec(schedule.due(due)));
        self.timer.set(once, TimerSetTimeFlags::TFD_TIMER_ABSTIME).at("set the timer")
    }

    /// Sleeps until something comes or is due, and takes it.
    fn wait(&mut self, time: u64) -> Result<(), LoadError> {
        let mut events = [EpollEvent::empty(); EVENTS];
        let until = (self.looked + LOOK_EVERY).min(self.clock.last);
        let milliseconds = until.saturating_sub(time).div_ceil(1_000_000);
        let timeout = EpollTimeout::from(u16::try_from(milliseconds).unwrap_or(u16::MAX));
        let count = match self.common.epoll.wait(&mut events, timeout) {
            Ok(count) => count,
            Err(nix::errno::Errno::EINTR) => 0,
            Err(e) => return Err(e).at("wait for events"),
        };
        for event in events.iter().take(count).filter(|event| event.data() != TIMER) {
            let (number, generation) = Slot::of_event(event.data());
            let Some(slot) = self.slots.get_mut(number as usize).filter(|s| s.is_of(generation)) else {
                continue;
            };
            let progress = slot.ready(event.events(), &mut self.common);
            self.account(number, progress)?;
        }
        Ok(())
    }

    fn account(&mut self, number: u32, progress: Progress) -> Result<(), LoadError> {
        self.seen.made += u64::from(progress.opened);
        if let Some(why) = progress.unopened {
            self.seen.unmade += 1;
            self.seen.last_unmade = why;
        }
        let mut failed = false;
        if let Some((job, result)) = progress.ended {
            failed = result.is_err_and(|why| why != Failure::Status);
            self.busy = self.busy.saturating_sub(1);
            self.ended(job, result)?;
        }
        if progress.freed {
            if failed && self.clock.schedule.is_none() {
                self.resting.push(number);
            } else {
                self.free.push_back(number);
            }
        }
        Ok(())
    }

    fn ended(&mut self, job: Job, result: Result<u16, Failure>) -> Result<(), LoadError> {
        let seen = &mut self.seen;
        match (job.counted, result) {
            (false, result) => {
                let [answered, failed] = &mut seen.warm_up;
                *(if result.is_ok() { answered } else { failed }) += 1;
            }
            (true, Ok(_)) => {
                seen.last_answer = now()?;
                seen.answered += 1;
                seen.latency.record(seen.last_answer.saturating_sub(job.due));
            }
            (true, Err(why)) => *seen.failures.entry(why).or_default() += 1,
        }
        Ok(())
    }

    /// What need not be looked at for each request: limits, pauses, and whether to stop.
    fn look(&mut self, time: u64) {
        if self.stop.load(Ordering::Relaxed) && !self.seen.stopped {
            self.seen.stopped = true;
            self.clock.end = self.clock.end.min(time);
            self.clock.last = self.clock.last.min(time + STOP_GRACE);
        }
        self.free.extend(self.resting.drain(..));
        let oldest = time.saturating_sub(self.clock.limit);
        for number in 0..self.plan.connections {
            let Some(slot) = self.slots.get_mut(number as usize) else { continue };
            if slot.since().is_some_and(|since| since < oldest) {
                let progress = slot.give_up(Failure::Unanswered);
                if self.account(number, progress).is_err() {
                    return;
                }
            }
        }
    }

    fn finish(mut self, own_cpu_us: f64) -> Result<Report, LoadError> {
        for number in 0..self.slots.len() {
            if let Some(job) = self.slots.get(number).and_then(Slot::job) {
                self.ended(job, Err(Failure::Unanswered))?;
            }
        }
        if let Some(schedule) = self.clock.schedule {
            while self.next < self.clock.total(self.next) {
                self.ended(Job { due: 0, counted: self.is_counted(schedule) }, Err(Failure::NotSent))?;
                self.next += 1;
            }
        }
        let seen = self.seen;
        let failed: u64 = seen.failures.values().sum();
        let seconds = seen.last_answer.max(self.clock.end).saturating_sub(self.clock.warm) as f64 / 1e9;
        let requests = seen.answered + failed + seen.warm_up.iter().sum::<u64>();
        let [warm_up_answered, warm_up_failed] = seen.warm_up;
        Ok(Report {
            target: self.plan.target.to_string(),
            asked_per_second: self.plan.rate,
            answered_per_second: if seconds > 0.0 { seen.answered as f64 / seconds } else { 0.0 },
            seconds,
            complete: !seen.stopped,
            due: seen.answered + failed,
            answered: seen.answered,
            failed,
            failures: seen.failures,
            latency_us: seen.latency.summary(),
            distribution: seen.latency.distribution(),
            unsent_us: seen.unsent.summary(),
            connections: self.plan.connections,
            connections_made: seen.made,
            connections_failed: seen.unmade,
            warm_up_answered,
            warm_up_failed,
            own_cpu_us: if requests == 0 { 0.0 } else { own_cpu_us / requests as f64 },
        })
    }
}

impl Clock {
    fn new(plan: &Plan, start: u64) -> Self {
        let after = |time: std::time::Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let end = start.saturating_add(after(plan.duration));
        let limit = after(plan.limit);
        Self {
            start,
            warm: start.saturating_add(after(plan.warm_up)),
            end,
            last: end.saturating_add(limit),
            schedule: plan.rate.map(|rate| Schedule::new(start, rate)),
            limit,
        }
    }

    /// How many requests there are in all; of a closed loop as many as were sent.
    fn total(&self, sent: u64) -> u64 {
        self.schedule.map_or(sent, |schedule| schedule.count_before(self.end))
    }
}

/// Raises the soft limit of open files, if there is need.
pub(super) fn allow_files(connections: u32) -> Result<(), LoadError> {
    let wanted = u64::from(connections) + FILES_BESIDE;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).at("read the limit of open files")?;
    if soft >= wanted {
        return Ok(());
    }
    if hard < wanted {
        return Err(LoadError::Files { wanted: connections, limit: hard });
    }
    setrlimit(Resource::RLIMIT_NOFILE, wanted, hard).at("raise the limit of open files")
}

fn now() -> Result<u64, LoadError> {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).at("read the clock")?;
    Ok(u64::try_from(time.num_nanoseconds()).unwrap_or(0))
}

fn spec(nanoseconds: u64) -> TimeSpec {
    TimeSpec::nanoseconds(i64::try_from(nanoseconds).unwrap_or(i64::MAX))
}

/// CPU of this thread, in µs.
fn own_cpu() -> f64 {
    let used = getrusage(UsageWho::RUSAGE_THREAD);
    used.map_or(0.0, |used| {
        (used.user_time().num_microseconds() + used.system_time().num_microseconds()) as f64
    })
}
