//! The admin pages on loopback: what the waypoint does now, and what it counts.
//!
//! A page is one [`Route`] in [`routes`]; it runs on the control runtime, so it may await but must not block. Each also has a
//! row in `docs/admin.md`.

mod dump;
mod policies;
mod routes;
mod why;

use std::sync::Arc;

use culvert_common::admin::{Route, Routes, denials_page, json_answer, logging_page, text, why_page};
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
        Route::read("/stats/prometheus", "metrics, as on port 15020", move |_| {
            std::future::ready(text(StatusCode::OK, stats.metrics.encode(false)))
        }),
        logging_page(&shared.telemetry),
    ];
    Routes::new("waypoint", routes, Arc::clone(&shared.metrics))
}
