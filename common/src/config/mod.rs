//! Checked settings, and the report of what is wrong with what a person wrote.
//!
//! A [`Problem`] says where (file, line, object, field), what was seen and what is allowed. Readers collect all problems
//! before they give up, so that one run shows everything that is to be mended. A [`Stamp`] tells whether a file has changed
//! since. [`duration`] reads what flags of several programs hold. Knows nothing of meshes or YAML.

mod problem;
mod stamp;
mod values;

pub use problem::Problem;
pub use stamp::Stamp;
pub use values::duration;
