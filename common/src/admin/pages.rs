//! Pages that every proxy of the mesh has: the levels of its log, recent refusals, why a pair can or cannot talk.

use std::sync::Arc;

use http::StatusCode;

use super::denials::{recent_of, refusals};
use super::dump::json_answer;
use super::http::{Answer, Request, text};
use super::routes::Route;
use crate::decide::explain::explain;
use crate::state::State;
use crate::telemetry::{Logger, Telemetry};

/// Refusals of a listing that says no number.
const COUNT: usize = 100;

const LOGGING: &str = "only POST is answered here

POST /logging                                   the levels in force
POST /logging?level=LEVEL                       change the level of all scopes
POST /logging?level=SCOPE=LEVEL,SCOPE=LEVEL     change single scopes, added to what is in force
POST /logging?reset                             back to the levels of the start; may go with level=

levels: off error warn info debug trace
scopes: as the log prints them, for example access, policy, source::file
";

/// The page that tells and changes the levels of the log.
pub fn logging_page(telemetry: &Telemetry) -> Route {
    let logger = telemetry.logger().clone();
    Route::change("/logging", "log levels: ask, change, reset", LOGGING, move |request| {
        std::future::ready(logging(&logger, &request))
    })
}

fn logging(logger: &Logger, request: &Request) -> Answer {
    let (level, reset) = (request.query("level"), request.query("reset").is_some());
    if level.is_some() || reset {
        if let Err(error) = logger.change_filter(reset, level.as_deref().unwrap_or_default()) {
            return text(StatusCode::BAD_REQUEST, format!("{error}\n\n{LOGGING}"));
        }
        tracing::info!(levels = logger.filter(), "log levels changed");
    }
    text(StatusCode::OK, format!("current log level is {}\n", logger.filter()))
}

/// The page of recent refusals.
pub fn denials_page(telemetry: &Arc<Telemetry>) -> Route {
    let telemetry = Arc::clone(telemetry);
    Route::read("/culvert/denials", "recent refusals, newest first (?id= ?count=)", move |request| {
        std::future::ready(denials(&telemetry, &request))
    })
}

fn denials(telemetry: &Telemetry, request: &Request) -> Answer {
    let count = match request.query("count").map(|count| count.parse()) {
        Some(Err(_)) => return text(StatusCode::BAD_REQUEST, "count is a number, for example ?count=20\n"),
        Some(Ok(count)) => count,
        None => COUNT,
    };
    json_answer(StatusCode::OK, &refusals(telemetry.denials(), request.query("id").as_deref(), count))
}

/// The page that explains a pair, as this proxy's state has it.
pub fn why_page(state: &Arc<State>, telemetry: &Arc<Telemetry>) -> Route {
    let (state, telemetry) = (Arc::clone(state), Arc::clone(telemetry));
    Route::read(
        "/culvert/why",
        "why one pod can or cannot talk to another (?source=&destination=)",
        move |request| std::future::ready(why(&state, &telemetry, &request)),
    )
}

fn why(state: &State, telemetry: &Telemetry, request: &Request) -> Answer {
    let (Some(source), Some(destination)) = (request.query("source"), request.query("destination")) else {
        let help = "say who and where to: /culvert/why?source=shop/web-0&destination=cart.shop:80\n";
        return text(StatusCode::BAD_REQUEST, help);
    };
    match explain(&state.snapshot(), &source, &destination) {
        Ok(mut explanation) => {
            explanation.recent = recent_of(telemetry.denials(), &explanation);
            json_answer(StatusCode::OK, &explanation)
        }
        Err(error) => text(StatusCode::BAD_REQUEST, format!("{error}\n")),
    }
}
