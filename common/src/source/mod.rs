//! Where the state comes from. A source turns foreign text into a [`crate::model::Model`] and publishes it.
//!
//! [`kube`] is the translator: Kubernetes objects in, model out, pure, the same for files and for a cluster. [`mod@file`] is
//! a directory of such objects, re-read on change. [`local`] reads a mesh from one file in the reference's form, [`kept`] which waypoints were ready. Whatever a source cannot read is reported and never reaches the
//! state: the last good one stays in force. Nothing here decides about connections. Start with [`kube::translate`].

pub mod file;
pub mod kept;
pub mod kube;
pub mod local;
