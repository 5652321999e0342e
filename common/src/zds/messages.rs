//! The messages as protobuf (proto3, package `istio.workload.zds`), and what of them is taken.

use std::os::fd::OwnedFd;
use std::time::Duration;

use prost::Message;

use super::{Ack, PACKET_MAX, REFERENCE_PACKET, Request, WorkloadInfo, ZdsError};

const VERSION_1: i32 = 1;
/// What an ack's text may take, so that the packet fits the reference's buffer.
const ERROR_TEXT_MAX: usize = REFERENCE_PACKET - 16;

#[derive(Clone, PartialEq, Message)]
struct Hello {
    #[prost(int32, tag = "1")]
    version: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Info {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    namespace: String,
    #[prost(string, tag = "3")]
    service_account: String,
}

#[derive(Clone, PartialEq, Message)]
struct AddWorkload {
    #[prost(string, tag = "1")]
    uid: String,
    #[prost(message, optional, tag = "2")]
    workload_info: Option<Info>,
}

#[derive(Clone, PartialEq, Message)]
struct KeepWorkload {
    #[prost(string, tag = "1")]
    uid: String,
}

#[derive(Clone, PartialEq, Message)]
struct DelWorkload {
    #[prost(string, tag = "2")]
    uid: String,
    /// Not one of the reference's, which skips what it does not know.
    #[prost(uint32, optional, tag = "1000")]
    grace_seconds: Option<u32>,
}

#[derive(Clone, PartialEq, Message)]
struct SnapshotSent {}

#[derive(Clone, PartialEq, prost::Oneof)]
enum RequestPayload {
    #[prost(message, tag = "1")]
    Add(AddWorkload),
    #[prost(message, tag = "2")]
    Del(DelWorkload),
    #[prost(message, tag = "3")]
    SnapshotSent(SnapshotSent),
    #[prost(message, tag = "5")]
    Keep(KeepWorkload),
}

#[derive(Clone, PartialEq, Message)]
struct WorkloadRequest {
    #[prost(oneof = "RequestPayload", tags = "1, 2, 3, 5")]
    payload: Option<RequestPayload>,
}

#[derive(Clone, PartialEq, Message)]
struct AckMessage {
    #[prost(string, tag = "1")]
    error: String,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum ResponsePayload {
    #[prost(message, tag = "1")]
    Ack(AckMessage),
}

#[derive(Clone, PartialEq, Message)]
struct WorkloadResponse {
    #[prost(oneof = "ResponsePayload", tags = "1")]
    payload: Option<ResponsePayload>,
}

/// Reads what a packet asks for. Pure but for closing descriptors that do not belong there.
///
/// Errors: [`ZdsError::is_refusal_only`] tells which of them leave the connection in order.
pub fn decode_request(bytes: &[u8], mut fds: Vec<OwnedFd>) -> Result<Request, ZdsError> {
    const WHAT: &str = "a request";
    let payload = decode::<WorkloadRequest>(WHAT, bytes)?.payload;
    let payload = payload.ok_or_else(|| malformed(WHAT, bytes, "it asks for nothing known"))?;
    let (what, wanted) = match &payload {
        RequestPayload::Add(_) => ("add", 1),
        RequestPayload::Keep(_) => ("keep", 0),
        RequestPayload::Del(_) => ("del", 0),
        RequestPayload::SnapshotSent(_) => ("snapshot_sent", 0),
    };
    let found = fds.len();
    let netns = fds.pop();
    if found != wanted {
        return Err(ZdsError::Descriptors { what, found, wanted });
    }
    Ok(match (payload, netns) {
        (RequestPayload::Add(add), Some(netns)) => {
            let info = check(&add.uid, add.workload_info)?;
            Request::Add { uid: add.uid, info, netns }
        }
        (RequestPayload::Add(_), None) => return Err(ZdsError::Descriptors { what, found, wanted }),
        (RequestPayload::Keep(keep), _) => Request::Keep { uid: keep.uid },
        (RequestPayload::Del(del), _) => {
            let grace = del.grace_seconds.map(|seconds| Duration::from_secs(seconds.into()));
            Request::Del { uid: del.uid, grace }
        }
        (RequestPayload::SnapshotSent(_), _) => Request::SnapshotSent,
    })
}

fn check(uid: &str, info: Option<Info>) -> Result<WorkloadInfo, ZdsError> {
    let missing = |missing| ZdsError::Workload { uid: uid.to_owned(), missing };
    let info = info.ok_or_else(|| missing("who it is (workload_info)"))?;
    let named = [(uid, "its uid"), (&info.name, "its name"), (&info.namespace, "its namespace")];
    match named.iter().find(|(value, _)| value.is_empty()) {
        Some((_, field)) => Err(missing(*field)),
        None => {
            let Info { name, namespace, service_account } = info;
            Ok(WorkloadInfo { name, namespace, service_account })
        }
    }
}

/// Reads the proxy's hello.
///
/// Errors: it does not parse, or says a version that is not spoken here.
pub fn decode_hello(bytes: &[u8]) -> Result<(), ZdsError> {
    match decode::<Hello>("a hello", bytes)?.version {
        VERSION_1 => Ok(()),
        other => Err(ZdsError::Version(other)),
    }
}

/// Reads the proxy's answer.
///
/// Errors: it does not parse.
pub fn decode_ack(bytes: &[u8]) -> Result<Ack, ZdsError> {
    const WHAT: &str = "an ack";
    match decode::<WorkloadResponse>(WHAT, bytes)?.payload {
        Some(ResponsePayload::Ack(ack)) if ack.error.is_empty() => Ok(Ok(())),
        Some(ResponsePayload::Ack(ack)) => Ok(Err(ack.error)),
        None => Err(malformed(WHAT, bytes, "it answers nothing known")),
    }
}

fn decode<M: Message + Default>(what: &'static str, bytes: &[u8]) -> Result<M, ZdsError> {
    M::decode(bytes).map_err(|error| malformed(what, bytes, error))
}

fn malformed(what: &'static str, bytes: &[u8], reason: impl ToString) -> ZdsError {
    ZdsError::Malformed { what, length: bytes.len(), reason: reason.to_string() }
}

pub(super) fn encode_hello() -> Vec<u8> {
    Hello { version: VERSION_1 }.encode_to_vec()
}

/// Errors: longer than [`PACKET_MAX`].
pub(super) fn encode_request(request: &Request) -> Result<Vec<u8>, ZdsError> {
    let payload = match request {
        Request::Add { uid, info, .. } => RequestPayload::Add(AddWorkload {
            uid: uid.clone(),
            workload_info: Some(Info {
                name: info.name.clone(),
                namespace: info.namespace.clone(),
                service_account: info.service_account.clone(),
            }),
        }),
        Request::Keep { uid } => RequestPayload::Keep(KeepWorkload { uid: uid.clone() }),
        Request::Del { uid, grace } => RequestPayload::Del(DelWorkload {
            uid: uid.clone(),
            grace_seconds: grace.map(|grace| u32::try_from(grace.as_secs()).unwrap_or(u32::MAX)),
        }),
        Request::SnapshotSent => RequestPayload::SnapshotSent(SnapshotSent {}),
    };
    let bytes = WorkloadRequest { payload: Some(payload) }.encode_to_vec();
    if bytes.len() > PACKET_MAX { Err(ZdsError::TooLong { length: bytes.len() }) } else { Ok(bytes) }
}

/// A longer reason is cut: the reference's agent reads no more.
pub(super) fn encode_ack(ack: &Ack) -> Vec<u8> {
    let error = match ack {
        Ok(()) => String::new(),
        // Empty would mean success.
        Err(error) if error.is_empty() => "unknown error".to_owned(),
        Err(error) => {
            let mut end = error.len().min(ERROR_TEXT_MAX);
            while !error.is_char_boundary(end) {
                end -= 1;
            }
            error.get(..end).unwrap_or_default().to_owned()
        }
    };
    WorkloadResponse { payload: Some(ResponsePayload::Ack(AckMessage { error })) }.encode_to_vec()
}
