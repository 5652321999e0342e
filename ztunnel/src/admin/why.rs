//! The page behind `culvert why`: the explanation of a pair.

use std::sync::Arc;

use culvert_common::admin::{Answer, Request, Route, json_answer, recent_of, text};
use culvert_common::decide::explain::explain;
use http::StatusCode;

use crate::shared::Shared;

/// The page that explains a pair.
pub(super) fn page(shared: &Arc<Shared>) -> Route {
    let shared = Arc::clone(shared);
    Route::read(
        "/culvert/why",
        "why one pod can or cannot talk to another (?source=&destination=)",
        move |request| std::future::ready(why(&shared, &request)),
    )
}

fn why(shared: &Shared, request: &Request) -> Answer {
    let (Some(source), Some(destination)) = (request.query("source"), request.query("destination")) else {
        let help = "say who and where to: /culvert/why?source=shop/web-0&destination=cart.shop:80\n";
        return text(StatusCode::BAD_REQUEST, help);
    };
    match explain(&shared.state.snapshot(), &source, &destination) {
        Ok(mut explanation) => {
            explanation.recent = recent_of(shared.telemetry.denials(), &explanation);
            json_answer(StatusCode::OK, &explanation)
        }
        Err(error) => text(StatusCode::BAD_REQUEST, format!("{error}\n")),
    }
}
