//! The path and authority that the upstream sees in place of the client's.
//!
//! **Source**: Istio `HTTPRewrite`; Gateway API `HTTPURLRewriteFilter`, its table of ReplacePrefixMatch.

use std::borrow::Cow;

use http::HeaderValue;

use super::matching::after_segments;
use crate::model::l7::{
    HeaderEdits, PathRewrite, PathTest, RequestMatch, Rewrite, Route, TextMatch, Weighted,
};

/// The new path with the query of `target`. What does not apply leaves it as it is.
///
/// **Shape**: `by` is the match that held, as `find` tells it. The result begins with `/` unless what was configured does not.
pub(crate) fn rewritten<'t>(
    rewrite: &PathRewrite,
    by: Option<&RequestMatch>,
    target: &'t str,
) -> Cow<'t, str> {
    let (path, query) = parts(target);
    match rewrite {
        PathRewrite::PrefixText(new) => prefix_replaced(new, by, target),
        PathRewrite::PrefixSegments(new) => segments_replaced(new, by, target),
        PathRewrite::Full(new) => Cow::Owned(format!("{new}{query}")),
        PathRewrite::Regex { pattern, substitution } => {
            let new = pattern.replace(path.as_bytes(), substitution);
            Cow::Owned(format!("{}{query}", String::from_utf8_lossy(&new)))
        }
    }
}

/// What is sent as authority in place of the client's: what an edit sets, else what a rewrite says; the destination's
/// before the route's.
pub(crate) fn new_authority<'r>(route: &'r Route, backend: &'r Weighted) -> Option<&'r HeaderValue> {
    let says = |edits: &'r HeaderEdits, rewrite: &'r Rewrite| {
        rewrite.authority.as_ref().or(edits.authority.as_ref())
    };
    says(&backend.request_headers, &backend.rewrite).or_else(|| says(&route.request_headers, &route.rewrite))
}

/// How the path is changed on the way to this destination.
pub(crate) fn path_rewrite<'r>(route: &'r Route, backend: &'r Weighted) -> Option<&'r PathRewrite> {
    backend.rewrite.path.as_ref().or(route.rewrite.path.as_ref())
}

/// The path, and the query with its `?`.
pub(super) fn parts(target: &str) -> (&str, &str) {
    target.split_at(target.find('?').unwrap_or(target.len()))
}

/// `new` in place of the prefix that matched, as a text; of the whole path if it was compared otherwise.
pub(super) fn prefix_replaced<'t>(new: &str, by: Option<&RequestMatch>, target: &'t str) -> Cow<'t, str> {
    let (path, _) = parts(target);
    let matched = match by.and_then(|by| by.path.as_ref()) {
        Some(PathTest::Text { text: TextMatch::Prefix(prefix), .. }) => prefix.len(),
        Some(PathTest::Segments(prefix)) => prefix.trim_end_matches('/').len(),
        Some(PathTest::Text {
            text: TextMatch::Exact(_) | TextMatch::Regex(_) | TextMatch::Present, ..
        }) => path.len(),
        None => 1,
    };
    Cow::Owned(format!("{new}{}", target.get(matched..).unwrap_or_default()))
}

/// `new` in place of the segments that matched, of the whole path if it was compared otherwise; slashes are kept right.
pub(super) fn segments_replaced<'t>(new: &str, by: Option<&RequestMatch>, target: &'t str) -> Cow<'t, str> {
    let (path, query) = parts(target);
    let rest = match by.and_then(|by| by.path.as_ref()) {
        // The prefix is the whole path.
        Some(PathTest::Segments(prefix)) if prefix.is_empty() && path == "/" => "",
        Some(PathTest::Segments(prefix)) => after_segments(path, prefix).unwrap_or_default(),
        None => path,
        Some(PathTest::Text { .. }) => "",
    };
    let (new, slash) = match (new.trim_end_matches('/'), rest) {
        ("", "") => ("", "/"),
        (new, _) => (new, ""),
    };
    Cow::Owned(format!("{new}{slash}{rest}{query}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::l7::fixtures::{backend, edits, route};
    use crate::model::l7::Pattern;

    fn by(path: PathTest) -> RequestMatch {
        RequestMatch { path: Some(path), ..RequestMatch::default() }
    }

    fn text(text: TextMatch) -> RequestMatch {
        by(PathTest::Text { text, ignore_case: true })
    }

    #[test]
    fn a_text_replaces_the_prefix_or_the_whole_path() {
        let regex = || text(TextMatch::Regex(Pattern::new("/[a-z]+").unwrap()));
        for (one, new, target, want) in [
            (Some(text(TextMatch::Prefix("/Foo".into()))), "/bar", "/foobaz?q", "/barbaz?q"),
            (Some(text(TextMatch::Prefix("/foo/".into()))), "/", "/foo/x", "/x"),
            (Some(text(TextMatch::Exact("/foo".into()))), "/bar", "/foo?q", "/bar?q"),
            (Some(regex()), "/bar", "/foo?q", "/bar?q"),
            (Some(by(PathTest::Segments("/foo".into()))), "/bar", "/foo/x", "/bar/x"),
            (Some(RequestMatch::default()), "/bar", "/foo", "/barfoo"),
            (None, "/bar", "/foo?q", "/barfoo?q"),
        ] {
            let new = PathRewrite::PrefixText(new.into());
            assert_eq!(rewritten(&new, one.as_ref(), target), want, "{one:?} {target}");
        }
    }

    /// Source: Gateway API `HTTPPathModifier`, the table of ReplacePrefixMatch.
    #[test]
    fn segments_replace_segments() {
        for (target, prefix, new, want) in [
            ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
            ("/foo", "/foo", "/xyz", "/xyz"),
            ("/foo/", "/foo", "/xyz", "/xyz/"),
            ("/foo/bar", "/foo", "", "/bar"),
            ("/foo/", "/foo", "", "/"),
            ("/foo", "/foo", "", "/"),
            ("/foo/", "/foo", "/", "/"),
            ("/foo", "/foo", "/", "/"),
            ("/foo?a=/foo", "/foo", "/", "/?a=/foo"),
            ("/foo", "/", "/xyz", "/xyz/foo"),
        ] {
            let new = PathRewrite::PrefixSegments(new.into());
            let one = by(PathTest::Segments(prefix.into()));
            assert_eq!(rewritten(&new, Some(&one), target), want, "{target} {prefix} {new:?}");
        }
        let new = PathRewrite::PrefixSegments("/xyz".into());
        assert_eq!(rewritten(&new, None, "/foo"), "/xyz/foo", "any path has the prefix /");
        assert_eq!(rewritten(&new, Some(&text(TextMatch::Exact("/foo".into()))), "/foo?q"), "/xyz?q");
    }

    #[test]
    fn whole_paths_and_patterns_keep_the_query() {
        assert_eq!(rewritten(&PathRewrite::Full("/new".into()), None, "/old/x?q=1"), "/new?q=1");
        let pattern = Pattern::new("/([a-z]+)/v1").unwrap();
        let regex = PathRewrite::Regex { pattern, substitution: r"/v2/\1".into() };
        assert_eq!(rewritten(&regex, None, "/x/v1/y?z=/x/v1"), "/v2/x/y?z=/x/v1");
        assert_eq!(rewritten(&regex, None, "/x/v3"), "/x/v3");
    }

    #[test]
    fn the_destination_has_the_last_word() {
        let value = |text: &'static str| Some(HeaderValue::from_static(text));
        let mut backend = backend("a", 1);
        let mut route = route(vec![]);
        assert_eq!((new_authority(&route, &backend), path_rewrite(&route, &backend)), (None, None));
        route.rewrite = Rewrite { path: Some(PathRewrite::Full("/r".into())), authority: value("route") };
        assert_eq!(new_authority(&route, &backend), value("route").as_ref());
        route.request_headers = HeaderEdits { authority: value("route-edit"), ..edits(&[]) };
        assert_eq!(
            new_authority(&route, &backend),
            value("route").as_ref(),
            "as istiod has it, a rewrite wins"
        );
        backend.rewrite = Rewrite { path: Some(PathRewrite::Full("/b".into())), authority: value("backend") };
        assert_eq!(new_authority(&route, &backend), value("backend").as_ref());
        assert_eq!(path_rewrite(&route, &backend), Some(&PathRewrite::Full("/b".into())));
        backend.request_headers = HeaderEdits { authority: value("backend-edit"), ..edits(&[]) };
        assert_eq!(new_authority(&route, &backend), value("backend").as_ref());
    }
}
