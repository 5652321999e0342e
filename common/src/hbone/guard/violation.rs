//! What a peer did that ends its tunnel, or one of its streams.

use h2::Reason;

/// A rule that a peer broke. A bounded set: it is a label of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Nothing, or something else, where the first SETTINGS belong.
    #[error("the peer's first frame was not SETTINGS")]
    NoSettings,
    /// The first SETTINGS did not come.
    #[error("the peer sent no SETTINGS in time")]
    Silent,
    /// A setting that this end may not send, or far too many.
    #[error("the peer sent settings that it must not send")]
    Settings,
    /// PUSH_PROMISE.
    #[error("the peer pushed, which nobody allowed")]
    Push,
    /// Frames that carry nothing: DATA without bytes.
    #[error("the peer sent too many empty DATA frames")]
    EmptyData,
    /// SETTINGS, again and again.
    #[error("the peer sent too many SETTINGS frames")]
    SettingsFlood,
    /// PINGs or answers to PINGs, again and again.
    #[error("the peer sent too many PING frames")]
    PingFlood,
    /// Credit in small pieces, more often than bytes were sent.
    #[error("the peer sent too many WINDOW_UPDATE frames")]
    WindowUpdateFlood,
    /// PRIORITY, GOAWAY and unknown frames.
    #[error("the peer sent too many frames that mean nothing")]
    FrameFlood,
    /// Streams that were given up before they were answered.
    #[error("the peer reset too many streams before they were answered")]
    ResetFlood,
    /// Stream errors that the peer provoked.
    #[error("the peer provoked too many stream errors")]
    ProvokedResets,
    /// A header block in too many pieces.
    #[error("the peer sent too many CONTINUATION frames")]
    Continuation,
    /// Header blocks over the limit, several times, or one far over it.
    #[error("the peer sent header lists over the announced limit")]
    HeaderList,
    /// A header block that cannot be decoded.
    #[error("the peer sent a header block that cannot be decoded")]
    Compression,
    /// 1xx answers, of which a tunnel needs none.
    #[error("the peer sent too many interim answers")]
    Interim,
    /// A frame longer than announced, or not as long as its kind.
    #[error("the peer sent a frame of a wrong length")]
    FrameSize,
    /// More bytes or credit than a window has.
    #[error("the peer broke flow control")]
    FlowControl,
    /// TLS records that are none, or not the peer's, behind the handshake.
    #[error("the peer broke TLS behind the handshake")]
    Tls,
    /// Anything else that RFC 9113 forbids.
    #[error("the peer sent frames that HTTP/2 does not allow")]
    Protocol,
    /// Anything else that the codec had enough of.
    #[error("the peer sent more than the codec stands")]
    Excess,
    /// A request or an answer that is none: its stream was reset, the tunnel goes on.
    #[error("the peer sent a malformed message")]
    Malformed,
}

/// What a violation costs the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ends {
    /// One stream; the tunnel goes on.
    Stream(Violation),
    /// All of it.
    Tunnel(Violation),
}

impl Violation {
    /// Value of the metric's label `kind`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoSettings => "no_settings",
            Self::Silent => "silent",
            Self::Settings => "settings",
            Self::Push => "push",
            Self::EmptyData => "empty_data",
            Self::SettingsFlood => "settings_flood",
            Self::PingFlood => "ping_flood",
            Self::WindowUpdateFlood => "window_update_flood",
            Self::FrameFlood => "frame_flood",
            Self::ResetFlood => "reset_flood",
            Self::ProvokedResets => "provoked_resets",
            Self::Continuation => "continuation",
            Self::HeaderList => "header_list",
            Self::Compression => "compression",
            Self::Interim => "interim",
            Self::FrameSize => "frame_size",
            Self::FlowControl => "flow_control",
            Self::Tls => "tls",
            Self::Protocol => "protocol",
            Self::Excess => "excess",
            Self::Malformed => "malformed",
        }
    }

    /// What the peer is told in GOAWAY.
    pub(super) fn reason(self) -> Reason {
        match self {
            Self::NoSettings | Self::Settings | Self::Push | Self::Tls | Self::Protocol | Self::Malformed => {
                Reason::PROTOCOL_ERROR
            }
            Self::Silent => Reason::SETTINGS_TIMEOUT,
            Self::Compression => Reason::COMPRESSION_ERROR,
            Self::FrameSize => Reason::FRAME_SIZE_ERROR,
            Self::FlowControl => Reason::FLOW_CONTROL_ERROR,
            Self::EmptyData
            | Self::SettingsFlood
            | Self::PingFlood
            | Self::WindowUpdateFlood
            | Self::FrameFlood
            | Self::ResetFlood
            | Self::ProvokedResets
            | Self::Continuation
            | Self::HeaderList
            | Self::Interim
            | Self::Excess => Reason::ENHANCE_YOUR_CALM,
        }
    }

    /// Of an RST_STREAM that the codec itself sends; `None` if nobody is to blame.
    pub(super) fn of_reset(reason: Reason) -> Option<Self> {
        match reason {
            Reason::PROTOCOL_ERROR => Some(Self::Malformed),
            Reason::FLOW_CONTROL_ERROR => Some(Self::FlowControl),
            _ => None,
        }
    }

    /// Of a GOAWAY that the codec itself sends; `None` if nobody is to blame.
    pub(super) fn of_goaway(reason: Reason) -> Option<Self> {
        match reason {
            Reason::NO_ERROR => None,
            Reason::FLOW_CONTROL_ERROR => Some(Self::FlowControl),
            Reason::FRAME_SIZE_ERROR => Some(Self::FrameSize),
            Reason::COMPRESSION_ERROR => Some(Self::Compression),
            Reason::ENHANCE_YOUR_CALM => Some(Self::Excess),
            _ => Some(Self::Protocol),
        }
    }
}
