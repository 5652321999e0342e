//! The ZDS connection of the proxy: dials the agent, says hello, passes each request on and answers it.
//!
//! Whatever comes, the process goes on: what cannot be read is refused, the connection dropped and made anew.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use culvert_common::net::seqpacket::SeqPacket;
use culvert_common::task::Scope;
use culvert_common::zds::{Channel, Request, ZdsError};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{sleep, timeout};

use crate::enroll::LocalDialer;

/// Pause after the first failed attempt; doubled each time.
const PAUSE_MIN: Duration = Duration::from_millis(10);
/// Longest pause between attempts.
const PAUSE_MAX: Duration = Duration::from_secs(15);
/// Limit of sending hello, or an answer.
const SEND: Duration = Duration::from_secs(5);

/// Where the agent is.
#[derive(Clone, Debug)]
pub(crate) enum Dialer {
    /// Another process.
    Path(PathBuf),
    /// This process.
    Local(LocalDialer),
}

impl Dialer {
    fn dial(&self) -> io::Result<SeqPacket> {
        match self {
            Self::Path(path) => SeqPacket::connect(path),
            Self::Local(dialer) => dialer.connect(),
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Path(path) => path.display().to_string(),
            Self::Local(_) => "this process".to_owned(),
        }
    }
}

/// What happens on the connection.
pub(super) enum Event {
    /// It stands; all wanted pods are going to be named.
    Connected,
    /// The agent asks, and waits for the answer.
    Request(Request, oneshot::Sender<Answer>),
    /// It is gone.
    Lost,
}

/// What the agent is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Done,
    /// Not done; the connection goes on.
    Refused(String),
    /// The message does not belong here: nothing that follows on this connection can be trusted.
    Misplaced(String),
}

/// Why a conversation ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("cannot connect: {0}")]
    Dial(io::Error),
    #[error("the agent ended the connection")]
    ByAgent,
    #[error(transparent)]
    Zds(#[from] ZdsError),
    #[error("{0}")]
    Misplaced(String),
    #[error("the agent does not take what is sent, for {SEND:?}")]
    Stuck,
    #[error("a new snapshot is wanted")]
    Anew,
    #[error("the agent drains")]
    Draining,
}

/// Keeps one ZDS connection.
pub(super) struct Feed {
    dialer: Dialer,
    events: mpsc::Sender<Event>,
    /// Asks for a new connection, and with it a new snapshot.
    anew: Arc<Notify>,
    /// Whether the agent has said something on this connection: then it is worth a quick next attempt.
    heard: bool,
}

impl Feed {
    pub(super) fn new(dialer: Dialer, events: mpsc::Sender<Event>, anew: Arc<Notify>) -> Self {
        Self { dialer, events, anew, heard: false }
    }

    /// Runs until `scope` drains.
    pub(super) async fn run(mut self, scope: Scope) {
        let mut pause = PAUSE_MIN;
        let mut said = String::new();
        while !scope.is_draining() {
            self.heard = false;
            let ended = tokio::select! {
                ended = self.converse() => ended,
                () = scope.draining() => Ended::Draining,
            };
            if self.heard {
                (pause, said) = (PAUSE_MIN, String::new());
            }
            let why = ended.to_string();
            match ended {
                Ended::Draining => return,
                Ended::Anew => tracing::debug!("ZDS connection made anew"),
                // Said once until it is something else: the attempts go on for as long as it takes.
                _ if why != said => {
                    tracing::warn!(agent = self.dialer.name(), "no ZDS connection: {why}; trying again");
                    said = why;
                }
                _ => {}
            }
            tokio::select! {
                () = sleep(pause) => {}
                () = scope.draining() => return,
            }
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    async fn converse(&mut self) -> Ended {
        let channel = match self.dialer.dial() {
            Ok(socket) => Channel::new(socket),
            Err(error) => return Ended::Dial(error),
        };
        let ended = match timeout(SEND, channel.send_hello()).await {
            Ok(Ok(())) => self.obey(&channel).await,
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(Ended::Stuck),
        };
        let _draining = self.events.send(Event::Lost).await;
        match ended {
            Err(ended) => ended,
            Ok(never) => match never {},
        }
    }

    async fn obey(&mut self, channel: &Channel) -> Result<Never, Ended> {
        let _draining = self.events.send(Event::Connected).await;
        loop {
            let request = tokio::select! {
                request = channel.recv_request() => request,
                () = self.anew.notified() => return Err(Ended::Anew),
            };
            let (answer, fatal) = match request {
                Ok(None) => return Err(Ended::ByAgent),
                Ok(Some(request)) => {
                    self.heard = true;
                    match self.pass_on(request).await? {
                        Answer::Done => (Ok(()), None),
                        Answer::Refused(text) => (Err(text), None),
                        Answer::Misplaced(text) => (Err(text.clone()), Some(Ended::Misplaced(text))),
                    }
                }
                Err(error) if error.is_refusal_only() => (Err(error.to_string()), None),
                Err(error) => (Err(error.to_string()), Some(error.into())),
            };
            let sent = timeout(SEND, channel.send_ack(&answer)).await;
            if let Some(ended) = fatal {
                return Err(ended);
            }
            sent.map_err(|_| Ended::Stuck)??;
        }
    }

    async fn pass_on(&self, request: Request) -> Result<Answer, Ended> {
        let (answer, answered) = oneshot::channel();
        let gone = |_| Ended::Draining;
        self.events.send(Event::Request(request, answer)).await.map_err(|_| Ended::Draining)?;
        answered.await.map_err(gone)
    }
}

enum Never {}
