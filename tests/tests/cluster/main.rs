//! Real Kubernetes, istiod and istio-cni, with our agent in the place of ztunnel. `make test-cluster` brings the cluster
//! up and runs them; without a cluster each test fails and says so. `docs/cluster-lab.md` has the rest.
//!
//! Each test has namespaces of its own. Those that restart agents or istiod disturb the others, so one runs at a time.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod agents;
mod change;
mod dns;
mod enrol;
mod family;
mod flows;
mod istioctl;
mod istiod;
mod kube;
mod mixed;
mod packaging;
mod policy;
mod scale;
mod services;
mod shapes;
mod space;
mod traffic;
mod waypoint;
mod workloads;
