//! Response flags as Envoy writes them.

use std::fmt;

/// What went wrong with a request. Source: Envoy, `%RESPONSE_FLAGS%`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Flag {
    /// No healthy upstream.
    NoHealthyUpstream,
    /// The upstream could not be connected to.
    UpstreamConnectionFailure,
    /// A circuit breaker.
    UpstreamOverflow,
    /// No route.
    NoRoute,
    /// All retries are used up.
    RetryLimit,
    /// The destination is not known.
    NoCluster,
    /// The connection took as long as one may.
    DurationTimeout,
    /// The client went away.
    DownstreamTermination,
    /// The request was reset here.
    LocalReset,
    /// The upstream reset it.
    UpstreamReset,
    /// The upstream closed the connection.
    UpstreamTermination,
    /// The request, or a try, took too long.
    UpstreamTimeout,
    /// A delay made on purpose.
    DelayInjected,
    /// An answer made on purpose.
    FaultInjected,
    /// Too many requests.
    RateLimited,
    /// Nothing moved for too long.
    StreamIdle,
    /// The client broke the protocol.
    DownstreamProtocol,
    /// The upstream broke the protocol.
    UpstreamProtocol,
    /// Too much was asked of this process.
    Overload,
}

impl Flag {
    /// Every flag, each at the index that is its discriminant.
    pub const ALL: [Self; 19] = [
        Self::NoHealthyUpstream,
        Self::UpstreamConnectionFailure,
        Self::UpstreamOverflow,
        Self::NoRoute,
        Self::RetryLimit,
        Self::NoCluster,
        Self::DurationTimeout,
        Self::DownstreamTermination,
        Self::LocalReset,
        Self::UpstreamReset,
        Self::UpstreamTermination,
        Self::UpstreamTimeout,
        Self::DelayInjected,
        Self::FaultInjected,
        Self::RateLimited,
        Self::StreamIdle,
        Self::DownstreamProtocol,
        Self::UpstreamProtocol,
        Self::Overload,
    ];

    /// Its short form.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoHealthyUpstream => "UH",
            Self::UpstreamConnectionFailure => "UF",
            Self::UpstreamOverflow => "UO",
            Self::NoRoute => "NR",
            Self::RetryLimit => "URX",
            Self::NoCluster => "NC",
            Self::DurationTimeout => "DT",
            Self::DownstreamTermination => "DC",
            Self::LocalReset => "LR",
            Self::UpstreamReset => "UR",
            Self::UpstreamTermination => "UC",
            Self::UpstreamTimeout => "UT",
            Self::DelayInjected => "DI",
            Self::FaultInjected => "FI",
            Self::RateLimited => "RL",
            Self::StreamIdle => "SI",
            Self::DownstreamProtocol => "DPE",
            Self::UpstreamProtocol => "UPE",
            Self::Overload => "OM",
        }
    }
}

/// Flags of one request in the order in which they were raised: `URX,UF`, or `-` without any.
///
/// **Shape**: at most four; more are not kept, so that few different texts can be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Flags([Option<Flag>; 4]);

impl Flags {
    /// Raises one, unless it is.
    pub fn raise(&mut self, flag: Flag) {
        if !self.has(flag)
            && let Some(free) = self.0.iter_mut().find(|place| place.is_none())
        {
            *free = Some(flag);
        }
    }

    /// Whether one is raised.
    pub fn has(&self, flag: Flag) -> bool {
        self.0.contains(&Some(flag))
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.0 == [None; 4]
    }
}

impl Extend<Flag> for Flags {
    fn extend<T: IntoIterator<Item = Flag>>(&mut self, flags: T) {
        flags.into_iter().for_each(|flag| self.raise(flag));
    }
}

impl From<Flag> for Flags {
    fn from(flag: Flag) -> Self {
        Self([Some(flag), None, None, None])
    }
}

impl fmt::Display for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut raised = self.0.iter().flatten();
        f.write_str(raised.next().map_or("-", |flag| flag.as_str()))?;
        raised.try_for_each(|flag| write!(f, ",{}", flag.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_told_in_the_order_in_which_they_were_raised() {
        let mut flags = Flags::default();
        assert_eq!((flags.to_string().as_str(), flags.is_empty()), ("-", true));
        for flag in [Flag::RetryLimit, Flag::UpstreamConnectionFailure, Flag::RetryLimit] {
            flags.raise(flag);
        }
        assert_eq!(flags.to_string(), "URX,UF");
        assert!(flags.has(Flag::RetryLimit) && !flags.has(Flag::NoRoute));
        for flag in [Flag::DelayInjected, Flag::FaultInjected, Flag::NoRoute] {
            flags.raise(flag);
        }
        assert_eq!(flags.to_string(), "URX,UF,DI,FI", "no more than four");
        assert_eq!(Flags::from(Flag::NoRoute).to_string(), "NR");
    }

    #[test]
    fn each_flag_has_a_text_of_its_own() {
        for (index, flag) in Flag::ALL.into_iter().enumerate() {
            assert_eq!(flag as usize, index);
            assert_eq!(Flag::ALL.iter().filter(|other| other.as_str() == flag.as_str()).count(), 1);
        }
    }
}
