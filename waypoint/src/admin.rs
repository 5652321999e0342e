//! The admin pages on loopback: what the waypoint does now, and what it counts.
//!
//! A page is one [`Route`] in [`routes`]; it runs on the control runtime, so it may await but must not block. Each also has a
//! row in `docs/admin.md`.

mod dump;

use std::sync::Arc;

use culvert_common::admin::{Answer, Request, Route, Routes, json_answer, refusals, text};
use culvert_common::telemetry::Logger;
use http::StatusCode;

use crate::shared::Shared;

/// Refusals of a listing that says no number.
const COUNT: usize = 100;

/// All pages, in the order of the index.
pub(crate) fn routes(shared: &Arc<Shared>) -> Arc<Routes> {
    let [whole, clusters, statuses, denials, stats] = [(); 5].map(|()| Arc::clone(shared));
    let logger = shared.telemetry.logger().clone();
    let routes = vec![
        Route::read(
            "/config_dump",
            "services, routes, clusters, policies, statuses and certificates",
            move |_| std::future::ready(json_answer(StatusCode::OK, &dump::whole(&whole))),
        ),
        Route::read("/clusters", "destinations, their endpoints and what is under way there", move |_| {
            std::future::ready(json_answer(StatusCode::OK, &dump::clusters(&clusters.current())))
        }),
        Route::read("/culvert/statuses", "what a controller writes back of the objects", move |_| {
            std::future::ready(json_answer(StatusCode::OK, &dump::statuses(&statuses.current().waypoint)))
        }),
        Route::read("/culvert/denials", "recent refusals, newest first (?id= ?count=)", move |request| {
            std::future::ready(recent(&denials, &request))
        }),
        Route::read("/stats/prometheus", "metrics, as on port 15020", move |_| {
            std::future::ready(text(StatusCode::OK, stats.metrics.encode(false)))
        }),
        Route::change("/logging", "log levels: ask, change, reset", LOGGING, move |request| {
            std::future::ready(logging(&logger, &request))
        }),
    ];
    Routes::new(routes, Arc::clone(&shared.metrics))
}

const LOGGING: &str = "only POST is answered here

POST /logging                                   the levels in force
POST /logging?level=LEVEL                       change the level of all scopes
POST /logging?level=SCOPE=LEVEL,SCOPE=LEVEL     change single scopes, added to what is in force
POST /logging?reset                             back to the levels of the start; may go with level=

levels: off error warn info debug trace
scopes: as the log prints them, for example access, policy, state
";

fn logging(logger: &Logger, request: &Request) -> Answer {
    let (level, reset) = (request.query("level"), request.query("reset").is_some());
    if (level.is_some() || reset)
        && let Err(error) = logger.change_filter(reset, level.as_deref().unwrap_or_default())
    {
        return text(StatusCode::BAD_REQUEST, format!("{error}\n\n{LOGGING}"));
    }
    text(StatusCode::OK, format!("{}\n", logger.filter()))
}

fn recent(shared: &Shared, request: &Request) -> Answer {
    let count = match request.query("count").map(|count| count.parse()) {
        Some(Err(_)) => return text(StatusCode::BAD_REQUEST, "count is a number, for example ?count=20\n"),
        Some(Ok(count)) => count,
        None => COUNT,
    };
    let page = refusals(shared.telemetry.denials(), request.query("id").as_deref(), count);
    json_answer(StatusCode::OK, &page)
}
