//! The admin pages on loopback: what the waypoint does now, and what it counts.
//!
//! A page is one [`Route`] in [`routes`]; it runs on the control runtime, so it may await but must not block. Each also has a
//! row in `docs/admin.md`.

mod dump;
mod policies;
mod routes;
mod why;

use std::sync::Arc;

use culvert_common::admin::{
    Answer, Request, Route, Routes, denials_page, json_answer, logging_page, text, why_page,
};
use http::StatusCode;

use crate::shared::Shared;

/// All pages, in the order of the index.
pub(crate) fn routes(shared: &Arc<Shared>) -> Arc<Routes> {
    let [whole, clusters, statuses, stats] = [(); 4].map(|()| Arc::clone(shared));
    let routes = vec![
        Route::read(
            "/config_dump",
            "services, routes, clusters, policies, statuses and certificates",
            move |_| std::future::ready(json_answer(StatusCode::OK, &dump::whole(&whole))),
        ),
        Route::read("/clusters", "destinations, their endpoints and what is under way there", move |_| {
            std::future::ready(json_answer(StatusCode::OK, &dump::clusters(&clusters.current())))
        }),
        why_page(&shared.state, &shared.telemetry),
        why::page(shared),
        Route::read("/culvert/statuses", "what a controller writes back of the objects", move |_| {
            std::future::ready(json_answer(StatusCode::OK, &dump::statuses(&statuses.current().waypoint)))
        }),
        denials_page(&shared.telemetry),
        spans_page(shared),
        Route::read("/stats/prometheus", "metrics, as on port 15020", move |_| {
            std::future::ready(text(StatusCode::OK, stats.metrics.encode(false)))
        }),
        logging_page(&shared.telemetry),
    ];
    Routes::new("waypoint", routes, Arc::clone(&shared.metrics))
}

/// Spans of a listing that says no number.
const SPANS: usize = 100;

fn spans_page(shared: &Arc<Shared>) -> Route {
    let shared = Arc::clone(shared);
    Route::read("/culvert/spans", "newest spans, as OTLP's JSON (?trace= ?count=)", move |request| {
        std::future::ready(spans(&shared, &request))
    })
}

fn spans(shared: &Shared, request: &Request) -> Answer {
    let count = request.query("count").map_or(Ok(SPANS), |count| count.parse());
    let trace = request.query("trace").map(|trace| u128::from_str_radix(&trace, 16)).transpose();
    let (Ok(count), Ok(trace)) = (count, trace) else {
        let help = "count is a number and trace an id in hex, for example ?count=20 or ?trace=0af7651916cd43dd8448eb211c80319c\n";
        return text(StatusCode::BAD_REQUEST, help);
    };
    let current = shared.current();
    let gateway = &current.waypoint.gateway;
    let resource = [
        ("service.name", format!("{}.{}", gateway.name, gateway.namespace)),
        ("k8s.namespace.name", gateway.namespace.to_string()),
        ("service.version", env!("CARGO_PKG_VERSION").to_owned()),
    ];
    json_answer(StatusCode::OK, &shared.spans.export(&resource, trace, count))
}
