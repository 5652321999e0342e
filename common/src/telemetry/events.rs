//! `tracing` events, in the same lines and through the same writer as the access log.

use std::fmt::{Debug, Write};

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::line::Line;
use super::logging::Logger;

/// Not printed in front of a scope.
pub(super) const OUR_CRATES: [&str; 4] = ["culvert_common::", "ztunnel::", "culvert::", "waypoint::"];

/// The layer that writes events.
pub(super) struct Events {
    logger: Logger,
}

impl Events {
    pub(super) fn new(logger: Logger) -> Self {
        Self { logger }
    }
}

impl<S: Subscriber> Layer<S> for Events {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut message = Message(String::new());
        event.record(&mut message);
        let target = event.metadata().target();
        let scope = OUR_CRATES.iter().find_map(|krate| target.strip_prefix(krate)).unwrap_or(target);
        self.logger.line(*event.metadata().level(), (scope, &message.0), |line| {
            event.record(&mut Fields(line));
        });
    }
}

/// Picks the message out of an event.
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            let _infallible = write!(self.0, "{value:?}");
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.0.push_str(value);
        }
    }
}

/// Adds the other fields of an event.
struct Fields<'a, 'b>(&'a mut Line<'b>);

impl Visit for Fields<'_, '_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() != "message" {
            let text = format!("{value:?}");
            let address =
                text.parse::<std::net::SocketAddr>().is_ok() || text.parse::<std::net::IpAddr>().is_ok();
            if address { self.0.address_text(field.name(), &text) } else { self.0.text(field.name(), &text) }
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() != "message" {
            self.0.text(field.name(), value);
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.number(field.name(), value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.number(field.name(), value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.number(field.name(), value);
    }
}
