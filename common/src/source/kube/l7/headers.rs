//! Edits of headers: `headers` of a VirtualService, the header modifiers of Gateway API.

use std::collections::HashSet;

use http::{HeaderName, HeaderValue};

use crate::l7::check_value;
use crate::model::l7::HeaderEdits;
use crate::source::kube::reader::Field;

/// Edits of a request's headers and of its answer's.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct BothEdits {
    pub(super) request: HeaderEdits,
    pub(super) response: HeaderEdits,
}

/// Which side is edited: the authority can only be set on requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Request,
    Response,
}

/// `headers` of an HTTP route or of one of its destinations.
pub(super) fn both(parent: &Field<'_>) -> Option<BothEdits> {
    let field = parent.get("headers")?;
    field.only(&["request", "response"]);
    let side = |key: &str, side| field.get(key).map(|field| edits(&field, side)).unwrap_or_default();
    Some(BothEdits { request: side("request", Side::Request), response: side("response", Side::Response) })
}

/// `set`, `add` and `remove` of a VirtualService, each in the order of names.
fn edits(field: &Field<'_>, side: Side) -> HeaderEdits {
    field.only(&["set", "add", "remove"]);
    let mut edits = HeaderEdits::default();
    for key in ["set", "add"] {
        let Some(values) = field.get(key) else { continue };
        let mut entries = values.entries();
        entries.sort_by_key(|(name, _)| *name);
        for (name, value) in entries {
            if is_authority(name) && side == Side::Request {
                // An authority is taken as it is written.
                let authority = value.text().and_then(|text| literal(&value, text));
                if std::mem::replace(&mut edits.authority, authority).is_some() {
                    value.problem("the authority is set twice", "allowed: once");
                }
                continue;
            }
            let Some((name, header)) = header_name(&value, name).zip(template(&value)) else { continue };
            match key {
                "set" => edits.set.push((name, header)),
                _ => edits.add.push((name, header)),
            }
        }
    }
    for item in field.items("remove") {
        let name = item.text().and_then(|name| header_name(&item, name));
        edits.remove.extend(name);
    }
    edits
}

/// A header modifier of Gateway API: lists of names and values; each name once in each.
pub(super) fn modifier(field: &Field<'_>, side: Side) -> HeaderEdits {
    field.only(&["set", "add", "remove"]);
    let mut edits = HeaderEdits::default();
    for key in ["set", "add"] {
        let mut seen = HashSet::new();
        for item in bounded(field, key) {
            item.only(&["name", "value"]);
            let Some((name, value)) = item.text_at("name").zip(item.get("value")) else {
                item.problem("no name or no value", "allowed: a name and a value");
                continue;
            };
            if !seen.insert(name) {
                item.problem(format!("{name} for the second time"), "allowed: each header once");
            }
            if is_authority(name) && side == Side::Request {
                edits.authority = value.text().and_then(|text| literal(&value, text));
                continue;
            }
            // Gateway API knows no substitutions, Istio makes them all the same.
            if value.text().is_some_and(str::is_empty) {
                value.refuse("a value with at least one character");
            }
            let Some((name, header)) = header_name(&item, name).zip(lax_template(&value)) else { continue };
            // Of names that differ in case only the first counts.
            if edits.set.iter().any(|(other, _)| key == "set" && *other == name) {
                continue;
            }
            match key {
                "set" => edits.set.push((name, header)),
                _ => edits.add.push((name, header)),
            }
        }
    }
    for item in bounded(field, "remove") {
        let name = item.text().and_then(|name| header_name(&item, name));
        edits.remove.extend(name);
    }
    edits
}

/// The items of a list that Gateway API limits to 16.
fn bounded<'a>(field: &Field<'a>, key: &str) -> Vec<Field<'a>> {
    let items = field.items(key);
    if items.len() > 16
        && let Some(list) = field.get(key)
    {
        list.problem(format!("{} items", items.len()), "allowed: at most 16");
    }
    items
}

fn is_authority(name: &str) -> bool {
    name.eq_ignore_ascii_case("host") || name == ":authority"
}

/// A header's name; neither `host` nor one with a colon.
fn header_name(field: &Field<'_>, name: &str) -> Option<HeaderName> {
    let good = HeaderName::from_bytes(name.as_bytes()).ok().filter(|name| *name != http::header::HOST);
    if good.is_none() {
        field.problem(format!("header {name:?}"), "allowed: the name of a header other than host");
    }
    good
}

/// The value of a header that stands for itself.
fn literal(field: &Field<'_>, text: &str) -> Option<HeaderValue> {
    let value = HeaderValue::from_bytes(text.as_bytes()).ok();
    if value.is_none() {
        field.refuse("a header's value without control characters");
    }
    value
}

/// A value with substitutions as Envoy has them; `%%` stands for `%`.
fn template(field: &Field<'_>) -> Option<HeaderValue> {
    let value = literal(field, field.text()?)?;
    match check_value(&value) {
        Ok(()) => Some(value),
        Err(error) => {
            field.problem(error.to_string(), "allowed: such a substitution, or %% for a percent sign");
            None
        }
    }
}

/// The same, but a `%` that begins no substitution stands for itself.
fn lax_template(field: &Field<'_>) -> Option<HeaderValue> {
    let text = field.text()?;
    let value = literal(field, text)?;
    match check_value(&value) {
        Ok(()) => Some(value),
        Err(_) => literal(field, &text.replace('%', "%%")),
    }
}
