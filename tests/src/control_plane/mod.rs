//! A control plane by hand: a discovery server that says what a test wants, right or wrong, and a certificate authority.
//!
//! They share no code with the agent but the messages' tables of fields and the embedded CA. Each runs on a thread of its
//! own inside a namespace. Start with [`discovery::Discovery`]; [`resources`] has what it can say, [`hostile`] what no
//! server should.

pub mod authority;
pub mod discovery;
pub mod hostile;
pub mod resources;

use std::sync::{Mutex, MutexGuard, PoisonError};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
