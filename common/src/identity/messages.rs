//! Messages of Istio's certificate service, package `istio.v1.auth`.

use std::collections::HashMap;

use prost::Message;

/// The one method.
pub(super) const METHOD: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";
/// Where a node proxy says for whom it asks.
pub(super) const IMPERSONATED: &str = "ImpersonatedIdentity";

/// `IstioCertificateRequest`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Asked {
    /// PKCS#10 in PEM.
    #[prost(string, tag = "1")]
    pub(super) csr: String,
    /// Seconds.
    #[prost(int64, tag = "3")]
    pub(super) validity: i64,
    #[prost(message, optional, tag = "4")]
    pub(super) metadata: Option<Metadata>,
}

/// `google.protobuf.Struct`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Metadata {
    #[prost(map = "string, message", tag = "1")]
    pub(super) fields: HashMap<String, Text>,
}

/// `google.protobuf.Value`, if it is a string.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Text {
    #[prost(string, tag = "3")]
    pub(super) text: String,
}

/// `IstioCertificateResponse`: the leaf, the intermediates one by one, and the roots together as the last one; PEM.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Reply {
    #[prost(string, repeated, tag = "1")]
    pub(super) cert_chain: Vec<String>,
}
