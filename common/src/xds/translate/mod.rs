//! One resource of the control plane in, one item of the model out, or why it cannot be used. Pure.
//!
//! Each resource stands for itself: what is wrong with one never touches another. Values that this agent does not know
//! make their resource unusable wherever guessing could send traffic to the wrong place or let it in; those that only
//! telemetry reads fall back. Must not know of versions, streams or stores. Start with [`address`].
//! **Source**: l4.md §4.4, §4.7.

mod policy;
mod service;
#[cfg(test)]
mod tests;
mod workload;

use std::net::IpAddr;
use std::sync::Arc;

use prost::Message;

use super::proto;
use crate::model::{Authorization, GatewayAddress, GatewayDestination, Service, Workload};
use crate::types::{NotASpiffeId, ServiceKey};

pub(super) use policy::closed;

/// HBONE port of a gateway that does not say one.
const HBONE_PORT: u16 = 15008;

/// Why a resource cannot be used. Ends the sentence that begins with its name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// The bytes are not the message that the type says.
    #[error("cannot be decoded ({0}); is the control plane of a version that speaks this protocol?")]
    Undecodable(String),
    /// It has no body.
    #[error("has no content")]
    Empty,
    /// Its body is of another type than the response.
    #[error("has the type {0:?}, which is not what was asked for")]
    OtherType(String),
    /// An address that is neither a workload nor a service.
    #[error("is neither a workload nor a service; is the control plane newer than this agent?")]
    NeitherKind,
    /// An enum has a value that this agent does not know.
    #[error("{field} has the unknown value {value}; is the control plane newer than this agent?")]
    UnknownValue {
        /// Name of the field.
        field: &'static str,
        /// Its value.
        value: i32,
    },
    /// Something that this agent does not do.
    #[error("{0} is not supported")]
    NotSupported(&'static str),
    /// Bytes that are no address.
    #[error("{field} has {length} bytes, and an address has 4 or 16")]
    NotAnAddress {
        /// Name of the field.
        field: &'static str,
        /// How many there are.
        length: usize,
    },
    /// More bits than the address has.
    #[error("{field} has a prefix of {length} bits, which is more than its address has")]
    PrefixLength {
        /// Name of the field.
        field: &'static str,
        /// Of the prefix.
        length: u32,
    },
    /// Not a port.
    #[error("{field} is {port}, and ports end at 65535")]
    NotAPort {
        /// Name of the field.
        field: &'static str,
        /// What it says.
        port: u32,
    },
    /// A field without which it cannot be used.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// Not of the form that names of services have.
    #[error("{0:?} is no <namespace>/<host name>")]
    NotAServiceName(String),
    /// Larger than anything that Kubernetes stores.
    #[error("has {size} bytes, and no more than {limit} are taken")]
    TooLarge {
        /// Its size.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// Everything together is more than this agent keeps.
    #[error(
        "is left out: this agent keeps no more than {limit} bytes of state; raise the limit, or find out what grew"
    )]
    TooMuch {
        /// The limit.
        limit: usize,
    },
    /// Its identity is none.
    #[error("{0}")]
    Identity(#[from] NotASpiffeId),
}

/// What the translation needs to know of the agent.
#[derive(Clone, Debug)]
pub struct Options {
    /// Network of the agent. Virtual addresses of other networks are left out; empty takes all.
    pub network: Arc<str>,
    /// Most bytes of resources, as they come over the wire, that are kept together.
    pub bytes_max: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { network: "".into(), bytes_max: 200 << 20 }
    }
}

/// A resource of type `istio.workload.Address`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A workload and the services that it is behind.
    Workload(Box<Workload>, Vec<Membership>),
    /// A service, without its endpoints: workloads say where they belong.
    Service(Box<Service>),
}

/// That a workload is behind a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// The service.
    pub service: ServiceKey,
    /// Service port and target port.
    pub ports: Vec<(u16, u16)>,
}

/// Translates the body of an Address resource.
///
/// **Errors**: it cannot be decoded, or has what cannot be used.
pub fn address(body: &[u8], options: &Options) -> Result<Address, Unusable> {
    match decode::<proto::workload::Address>(body)?.kind {
        Some(proto::workload::Kind::Workload(message)) => workload::translate(*message),
        Some(proto::workload::Kind::Service(message)) => {
            Ok(Address::Service(Box::new(service::translate(*message, options)?)))
        }
        None => Err(Unusable::NeitherKind),
    }
}

/// Translates the body of an Authorization resource.
///
/// **Errors**: it cannot be decoded, or has what cannot be used.
pub fn authorization(body: &[u8]) -> Result<Authorization, Unusable> {
    policy::translate(decode::<proto::security::Authorization>(body)?)
}

fn decode<M: Message + Default>(body: &[u8]) -> Result<M, Unusable> {
    M::decode(body).map_err(|error| Unusable::Undecodable(error.to_string()))
}

fn ip(field: &'static str, bytes: &[u8]) -> Result<IpAddr, Unusable> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Ok(v4.into());
    }
    let v6 = <[u8; 16]>::try_from(bytes);
    v6.map(IpAddr::from).map_err(|_| Unusable::NotAnAddress { field, length: bytes.len() })
}

fn port(field: &'static str, port: u32) -> Result<u16, Unusable> {
    u16::try_from(port).map_err(|_| Unusable::NotAPort { field, port })
}

pub(super) fn service_key(text: &str) -> Result<ServiceKey, Unusable> {
    match text.split_once('/') {
        Some((namespace, hostname)) if !hostname.is_empty() => {
            Ok(ServiceKey { namespace: namespace.into(), hostname: hostname.into() })
        }
        // It goes into a log and back to the control plane.
        _ => Err(Unusable::NotAServiceName(text.chars().take(256).collect())),
    }
}

fn gateway(
    field: &'static str,
    message: proto::workload::GatewayAddress,
) -> Result<GatewayAddress, Unusable> {
    use proto::workload::Destination;
    let destination = match message.destination.ok_or(Unusable::Missing(field))? {
        Destination::Hostname(name) => GatewayDestination::Hostname(ServiceKey {
            namespace: name.namespace.into(),
            hostname: name.hostname.into(),
        }),
        Destination::Address(at) => {
            GatewayDestination::Address { network: at.network.into(), ip: ip(field, &at.address)? }
        }
    };
    let port = match message.hbone_mtls_port {
        0 => HBONE_PORT,
        said => port(field, said)?,
    };
    Ok(GatewayAddress { destination, port })
}

fn optional_gateway(
    field: &'static str,
    message: Option<proto::workload::GatewayAddress>,
) -> Result<Option<Arc<GatewayAddress>>, Unusable> {
    message.map(|message| gateway(field, message).map(Arc::new)).transpose()
}
