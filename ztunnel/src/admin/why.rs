//! The pages behind `culvert why`: the explanation of a pair, and recent refusals.

use std::sync::Arc;

use culvert_common::admin::{Answer, Request, Route, json_answer, recent_of, refusals, text};
use culvert_common::decide::explain::explain;
use http::StatusCode;

use crate::shared::Shared;

/// Refusals of a listing that says no number.
const COUNT: usize = 100;

pub(super) fn routes(shared: &Arc<Shared>) -> [Route; 2] {
    let (state, memory) = (Arc::clone(shared), Arc::clone(shared));
    [
        Route::read(
            "/culvert/why",
            "why one pod can or cannot talk to another (?source=&destination=)",
            move |request| std::future::ready(why(&state, &request)),
        ),
        Route::read("/culvert/denials", "recent refusals, newest first (?id= ?count=)", move |request| {
            std::future::ready(denials(&memory, &request))
        }),
    ]
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

fn denials(shared: &Shared, request: &Request) -> Answer {
    let count = match request.query("count").map(|count| count.parse()) {
        Some(Err(_)) => return text(StatusCode::BAD_REQUEST, "count is a number, for example ?count=20\n"),
        Some(Ok(count)) => count,
        None => COUNT,
    };
    let page = refusals(shared.telemetry.denials(), request.query("id").as_deref(), count);
    json_answer(StatusCode::OK, &page)
}
