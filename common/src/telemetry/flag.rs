//! Why a connection ended, as metrics and alerts know it.

/// Value of the label `response_flags`. The names are Istio's, of a waypoint's connections Envoy's; those that they do not
/// define start with `CULVERT_`, but for [`Self::NotCaptured`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ResponseFlag {
    /// Nothing went wrong.
    None,
    /// Policy.
    Deny,
    /// The next hop could not be reached, refused, or broke off.
    Connect,
    /// TLS handshake, wrong identity included.
    TlsFailure,
    /// HTTP/2 handshake.
    H2Handshake,
    /// Port 15008 of the next hop does not answer.
    NetworkPolicy,
    /// No certificate for the own identity.
    Identity,
    /// Refused because a budget is used up.
    Budget,
    /// Refused or cut because the agent drains.
    Draining,
    /// Refused because its pod has, opens or leaves unfinished as many connections as one may.
    Limit,
    /// It would have left in plaintext, to a destination that should be captured.
    NotCaptured,
    /// The peer's certificate was revoked.
    CertRevoked,
    /// At a waypoint: no connection to the endpoint.
    Unreached,
    /// At a waypoint: no endpoint can take it.
    NoHealthyUpstream,
    /// At a waypoint: no route leads on.
    NoRoute,
    /// At a waypoint: the route leads to what is not there, or cannot be used.
    NoCluster,
    /// At a waypoint: a circuit breaker is open.
    Overflow,
    /// At a waypoint: it was open for as long as one may.
    Duration,
}

impl ResponseFlag {
    /// Every flag, each at the index that is its discriminant.
    pub const ALL: [Self; 18] = [
        Self::None,
        Self::Deny,
        Self::Connect,
        Self::TlsFailure,
        Self::H2Handshake,
        Self::NetworkPolicy,
        Self::Identity,
        Self::Budget,
        Self::Draining,
        Self::Limit,
        Self::NotCaptured,
        Self::CertRevoked,
        Self::Unreached,
        Self::NoHealthyUpstream,
        Self::NoRoute,
        Self::NoCluster,
        Self::Overflow,
        Self::Duration,
    ];

    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::Deny => "DENY",
            Self::Connect => "CONNECT",
            Self::TlsFailure => "TLS_FAILURE",
            Self::H2Handshake => "H2_HANDSHAKE_FAILURE",
            Self::NetworkPolicy => "NETWORK_POLICY",
            Self::Identity => "IDENTITY_ERROR",
            Self::Budget => "CULVERT_BUDGET",
            Self::Draining => "CULVERT_DRAINING",
            Self::Limit => "CULVERT_LIMIT",
            Self::NotCaptured => "NOT_CAPTURED",
            Self::CertRevoked => "CERT_REVOKED",
            Self::Unreached => "UF,URX",
            Self::NoHealthyUpstream => "UH",
            Self::NoRoute => "NR",
            Self::NoCluster => "NC",
            Self::Overflow => "UO",
            Self::Duration => "DT",
        }
    }

    /// The class under which `culvert_refusals_total` counts a refusal that carries no class of its own.
    pub fn class(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Deny => "policy",
            Self::Connect => "connect",
            Self::TlsFailure => "tls",
            Self::H2Handshake => "http2",
            Self::NetworkPolicy => "network-policy",
            Self::Identity => "identity",
            Self::Budget => "budget",
            Self::Draining => "draining",
            Self::Limit => "limit",
            Self::NotCaptured => "not-captured",
            Self::CertRevoked => "revoked",
            Self::Unreached | Self::NoHealthyUpstream => "connect",
            Self::NoRoute | Self::NoCluster => "destination",
            Self::Overflow | Self::Duration => "limit",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_stands_at_its_own_index() {
        for (at, flag) in ResponseFlag::ALL.into_iter().enumerate() {
            assert_eq!(flag as usize, at, "{}", flag.as_str());
        }
    }
}
