//! The table against the protocol's own (§6), and the rule by which clients read a number.

use super::*;

type Row = (u16, &'static str, Class);

#[test]
fn errors_are_those_of_the_protocol() {
    let rows: Vec<Row> = ErrorCode::ALL.iter().map(|c| (c.code(), c.message(), c.class())).collect();
    assert_eq!(
        rows,
        [
            (100, "internal server error", Class::Retry),
            (101, "unauthorized", Class::Terminal),
            (102, "unknown channel", Class::Terminal),
            (103, "permission denied", Class::Terminal),
            (104, "method not found", Class::Terminal),
            (105, "already subscribed", Class::Terminal),
            (106, "limit exceeded", Class::Terminal),
            (107, "bad request", Class::Terminal),
            (108, "not available", Class::Terminal),
            (109, "token expired", Class::Renew),
            (110, "expired", Class::Terminal),
            (111, "too many requests", Class::Retry),
            (112, "unrecoverable position", Class::Terminal),
            (113, "concurrent pagination", Class::Retry),
        ]
    );
    let temporary: Vec<u16> = ErrorCode::ALL.iter().filter(|c| c.is_temporary()).map(|c| c.code()).collect();
    assert_eq!(temporary, [100, 111, 113]);
}

#[test]
fn unsubscribes_are_those_of_the_protocol() {
    let rows: Vec<Row> = UnsubscribeCode::ALL.iter().map(|c| (c.code(), c.reason(), c.class())).collect();
    assert_eq!(
        rows,
        [
            (2000, "server unsubscribe", Class::Terminal),
            (2500, "insufficient state", Class::Resubscribe),
            (2501, "subscription expired", Class::Resubscribe),
            (2502, "state invalidated", Class::Resubscribe),
        ]
    );
}

#[test]
fn disconnects_are_those_of_the_protocol() {
    let rows: Vec<Row> = DisconnectCode::ALL.iter().map(|c| (c.code(), c.reason(), c.class())).collect();
    assert_eq!(
        rows,
        [
            (3000, "connection closed", Class::Reconnect),
            (3001, "shutdown", Class::Reconnect),
            (3004, "internal server error", Class::Reconnect),
            (3005, "connection expired", Class::Reconnect),
            (3006, "subscription expired", Class::Reconnect),
            (3008, "slow", Class::Reconnect),
            (3009, "write error", Class::Reconnect),
            (3010, "insufficient state", Class::Reconnect),
            (3011, "force reconnect", Class::Reconnect),
            (3012, "no pong", Class::Reconnect),
            (3013, "too many requests", Class::Reconnect),
            (3014, "state invalidated", Class::Reconnect),
            (3500, "invalid token", Class::Terminal),
            (3501, "bad request", Class::Terminal),
            (3502, "stale", Class::Terminal),
            (3503, "force disconnect", Class::Terminal),
            (3504, "connection limit", Class::Terminal),
            (3505, "channel limit", Class::Terminal),
            (3506, "inappropriate protocol", Class::Terminal),
            (3507, "permission denied", Class::Terminal),
            (3508, "not available", Class::Terminal),
            (3509, "too many errors", Class::Terminal),
        ]
    );
}

#[test]
fn the_table_says_what_clients_read_from_the_number() {
    for code in DisconnectCode::ALL {
        assert_eq!(code.class(), Class::of_disconnect(code.code().into()), "{code:?}");
        assert_eq!(Disconnect::from(*code).class(), code.class(), "{code:?}");
        assert!(code.reason().len() <= MAX_REASON, "{code:?}");
    }
    for code in UnsubscribeCode::ALL {
        assert_eq!(code.class(), Class::of_unsubscribe(code.code().into()), "{code:?}");
    }
}

#[test]
fn the_number_rule_holds_at_its_edges() {
    let edges = [
        (0, Class::Reconnect),
        (1006, Class::Reconnect),
        (2999, Class::Reconnect),
        (3000, Class::Reconnect),
        (3499, Class::Reconnect),
        (3500, Class::Terminal),
        (3999, Class::Terminal),
        (4000, Class::Reconnect),
        (4499, Class::Reconnect),
        (4500, Class::Terminal),
        (4999, Class::Terminal),
        (5000, Class::Reconnect),
        (u32::MAX, Class::Reconnect),
    ];
    for (code, class) in edges {
        assert_eq!(Class::of_disconnect(code), class, "{code}");
    }
    assert_eq!(Class::of_unsubscribe(2499), Class::Terminal);
    assert_eq!(Class::of_unsubscribe(2500), Class::Resubscribe);
}

#[test]
fn a_custom_disconnect_fits_a_close_frame() {
    for code in [0, 1000, 2999, 5000, 65_536 + 3500, u32::MAX] {
        assert_eq!(Disconnect::custom(code, "x"), None, "{code}");
    }
    let bye = Disconnect::custom(4500, "bye").unwrap();
    assert_eq!((bye.code(), bye.reason(), bye.class()), (4500, "bye", Class::Terminal));
    assert_eq!(Disconnect::custom(3000, "").unwrap().reason(), "");
    // 123 is no boundary between two-byte characters behind one byte less.
    let long = Disconnect::custom(4999, &"é".repeat(100)).unwrap();
    assert_eq!(long.reason(), "é".repeat(61));
}

#[test]
fn a_worthless_token_costs_what_its_command_says() {
    use DisconnectCode as D;
    use ErrorCode as E;
    use TokenError::*;
    let table: [(TokenUse, TokenError, Refusal); 20] = [
        (TokenUse::Connect, Missing, D::BadRequest.into()),
        (TokenUse::Connect, Invalid, D::InvalidToken.into()),
        (TokenUse::Connect, Expired, E::TokenExpired.into()),
        (TokenUse::Connect, NotYetValid, E::TokenExpired.into()),
        (TokenUse::Subscribe, Missing, E::PermissionDenied.into()),
        (TokenUse::Subscribe, Invalid, E::PermissionDenied.into()),
        (TokenUse::Subscribe, Expired, E::TokenExpired.into()),
        (TokenUse::Subscribe, NotYetValid, E::TokenExpired.into()),
        (TokenUse::Refresh, Missing, D::BadRequest.into()),
        (TokenUse::Refresh, Invalid, D::InvalidToken.into()),
        (TokenUse::Refresh, Expired, D::Expired.into()),
        (TokenUse::Refresh, NotYetValid, D::Expired.into()),
        (TokenUse::SubRefresh, Missing, E::BadRequest.into()),
        (TokenUse::SubRefresh, Invalid, D::InvalidToken.into()),
        (TokenUse::SubRefresh, Expired, E::Expired.into()),
        (TokenUse::SubRefresh, NotYetValid, E::Expired.into()),
        (TokenUse::Connect, NotNow, E::Internal.into()),
        (TokenUse::Subscribe, NotNow, E::Internal.into()),
        (TokenUse::Refresh, NotNow, E::Internal.into()),
        (TokenUse::SubRefresh, NotNow, E::Internal.into()),
    ];
    for (used, error, refusal) in table {
        assert_eq!(Refusal::of_token(used, error), refusal, "{used:?} {error:?}");
    }
    assert_eq!(Refusal::FOREIGN_TOKEN, D::InvalidToken.into());
}

#[test]
fn denials_and_bad_names_have_codes() {
    assert_eq!(ErrorCode::from(Denied::UnknownChannel).code(), 102);
    assert_eq!(ErrorCode::from(Denied::Forbidden).code(), 103);
    assert_eq!(ErrorCode::from(Denied::NotAvailable).code(), 108);
    assert_eq!(Refusal::from(Denied::Forbidden), Refusal::Error(ErrorCode::PermissionDenied));
    assert_eq!(Refusal::from(BadChannel::Empty), Refusal::Disconnect(DisconnectCode::BadRequest));
    for bad in [BadChannel::TooLong, BadChannel::NotPrintable, BadChannel::Malformed] {
        assert_eq!(Refusal::from(bad), Refusal::Error(ErrorCode::BadRequest));
    }
}

#[test]
fn without_replies_errors_become_disconnects() {
    for code in ErrorCode::ALL {
        let expected = match code.code() {
            109 | 110 => 3005,
            111 => 3013,
            103 => 3507,
            _ => 3004,
        };
        assert_eq!(code.for_uni().code(), expected, "{code:?}");
        assert_eq!(Refusal::from(*code).for_uni().code(), expected, "{code:?}");
    }
    assert_eq!(Refusal::from(DisconnectCode::InvalidToken).for_uni(), DisconnectCode::InvalidToken);
}
