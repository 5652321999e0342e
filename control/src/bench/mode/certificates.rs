//! Certificates of one root for proxies that are not ours: the root by which the agents of the lab trust each other.

use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use culvert_common::identity::{EmbeddedCa, EmbeddedOptions};
use culvert_common::types::SpiffeId;

use crate::lab::{Lab, Pod};

const TRUST_DOMAIN: &str = "cluster.local";

/// Paths of a pod's certificate; all PEM, P-256.
#[derive(Clone, Debug)]
pub(super) struct Material {
    /// The leaf with the pod's SPIFFE identity.
    pub(super) cert: PathBuf,
    /// Its key, PKCS#8.
    pub(super) key: PathBuf,
    /// The root of all pods.
    pub(super) root: PathBuf,
}

/// The lab's CA; made on first use, and the agents' too.
pub(super) fn authority(lab: &Lab) -> anyhow::Result<EmbeddedCa> {
    EmbeddedCa::open_or_create(&lab.ca_dir(), EmbeddedOptions::new(TRUST_DOMAIN)).context("open the lab's CA")
}

/// Issues a certificate for the pod into `dir`.
pub(super) fn issue(ca: &EmbeddedCa, pod: &Pod, dir: &Path) -> anyhow::Result<Material> {
    issue_as(ca, &pod.identity(), dir)
}

/// Issues a certificate for any identity of the trust domain into `dir`.
pub(super) fn issue_as(ca: &EmbeddedCa, identity: &str, dir: &Path) -> anyhow::Result<Material> {
    let id: SpiffeId = identity.parse().with_context(|| format!("the identity {identity}"))?;
    let issued = ca.issue(&id).with_context(|| format!("a certificate for {identity}"))?;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("create {}", dir.display()))?;
    let material =
        Material { cert: dir.join("cert.pem"), key: dir.join("key.pem"), root: dir.join("root.pem") };
    put(&material.cert, &issued.chain_pem())?;
    put(&material.key, &issued.key_pem())?;
    put(&material.root, &issued.roots_pem())?;
    Ok(material)
}

fn put(path: &Path, text: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let written = options.open(path).and_then(|mut file| file.write_all(text.as_bytes()));
    written.with_context(|| format!("write {}", path.display()))
}
