//! Memory that a burst of work has left behind.
//!
//! The allocator keeps what is freed for the next burst, and gives only the end of a heap back by itself. Here rather than
//! where it is asked for, as the call has no safe wrapper.

use super::{copy, sys};

/// Gives what nobody uses back to the system: pages of all threads' heaps, and this thread's read buffer.
///
/// Takes a millisecond or less for a heap of 20 MiB, and other threads that allocate wait meanwhile; what is used again
/// costs page faults. To be called when a burst is over.
pub fn give_back() {
    copy::drop_buffer();
    sys::trim_heap();
}
