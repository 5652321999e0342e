//! PeerAuthentication.
use super::Settings;
use super::object::{Meta, Objects};
use super::pod::Pod;
use super::reader::{Field, Report};
use crate::model::Authorization;
use crate::types::PolicyKey;

#[derive(Debug)]
pub(super) struct PeerAuthentication {}

impl PeerAuthentication {
    pub(super) fn read(_: Meta, _: &Field<'_>) -> Self {
        Self {}
    }
}

pub(super) fn translate(_: &Objects, _: &Settings, _: &Report) -> Vec<Authorization> {
    Vec::new()
}

pub(super) fn selecting(_: &Pod, _: &Objects, _: &Settings) -> Vec<PolicyKey> {
    Vec::new()
}
