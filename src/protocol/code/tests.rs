//! The table against the protocol's own (§6), and the rule by which clients read a number.

use super::*;

type Row = (u16, &'static str, ClientAction);

#[test]
fn errors_are_those_of_the_protocol() {
    let rows: Vec<Row> = ErrorCode::ALL.iter().map(|c| (c.code(), c.message(), c.client_action())).collect();
    assert_eq!(
        rows,
        [
            (100, "internal server error", ClientAction::Retry),
            (101, "unauthorized", ClientAction::Terminal),
            (102, "unknown channel", ClientAction::Terminal),
            (103, "permission denied", ClientAction::Terminal),
            (104, "method not found", ClientAction::Terminal),
            (105, "already subscribed", ClientAction::Terminal),
            (106, "limit exceeded", ClientAction::Terminal),
            (107, "bad request", ClientAction::Terminal),
            (108, "not available", ClientAction::Terminal),
            (109, "token expired", ClientAction::Renew),
            (110, "expired", ClientAction::Terminal),
            (111, "too many requests", ClientAction::Retry),
            (112, "unrecoverable position", ClientAction::Terminal),
            (113, "concurrent pagination", ClientAction::Retry),
        ]
    );
    let temporary: Vec<u16> = ErrorCode::ALL.iter().filter(|c| c.is_temporary()).map(|c| c.code()).collect();
    assert_eq!(temporary, [100, 111, 113]);
}

#[test]
fn unsubscribes_are_those_of_the_protocol() {
    let rows: Vec<Row> =
        UnsubscribeCode::ALL.iter().map(|c| (c.code(), c.reason(), c.client_action())).collect();
    assert_eq!(
        rows,
        [
            (2000, "server unsubscribe", ClientAction::Terminal),
            (2500, "insufficient state", ClientAction::Resubscribe),
            (2501, "subscription expired", ClientAction::Resubscribe),
            (2502, "state invalidated", ClientAction::Resubscribe),
        ]
    );
}

#[test]
fn disconnects_are_those_of_the_protocol() {
    let rows: Vec<Row> =
        DisconnectCode::ALL.iter().map(|c| (c.code(), c.reason(), c.client_action())).collect();
    assert_eq!(
        rows,
        [
            (3000, "connection closed", ClientAction::Reconnect),
            (3001, "shutdown", ClientAction::Reconnect),
            (3004, "internal server error", ClientAction::Reconnect),
            (3005, "connection expired", ClientAction::Reconnect),
            (3006, "subscription expired", ClientAction::Reconnect),
            (3008, "slow", ClientAction::Reconnect),
            (3009, "write error", ClientAction::Reconnect),
            (3010, "insufficient state", ClientAction::Reconnect),
            (3011, "force reconnect", ClientAction::Reconnect),
            (3012, "no pong", ClientAction::Reconnect),
            (3013, "too many requests", ClientAction::Reconnect),
            (3014, "state invalidated", ClientAction::Reconnect),
            (3500, "invalid token", ClientAction::Terminal),
            (3501, "bad request", ClientAction::Terminal),
            (3502, "stale", ClientAction::Terminal),
            (3503, "force disconnect", ClientAction::Terminal),
            (3504, "connection limit", ClientAction::Terminal),
            (3505, "channel limit", ClientAction::Terminal),
            (3506, "inappropriate protocol", ClientAction::Terminal),
            (3507, "permission denied", ClientAction::Terminal),
            (3508, "not available", ClientAction::Terminal),
            (3509, "too many errors", ClientAction::Terminal),
        ]
    );
}

#[test]
fn the_table_says_what_clients_read_from_the_number() {
    for code in DisconnectCode::ALL {
        assert_eq!(code.client_action(), ClientAction::of_disconnect(code.code().into()), "{code:?}");
        assert_eq!(Disconnect::from(*code).client_action(), code.client_action(), "{code:?}");
        assert!(code.reason().len() <= MAX_REASON, "{code:?}");
    }
    for code in UnsubscribeCode::ALL {
        assert_eq!(code.client_action(), ClientAction::of_unsubscribe(code.code().into()), "{code:?}");
    }
}

#[test]
fn the_number_rule_holds_at_its_edges() {
    let edges = [
        (0, ClientAction::Reconnect),
        (1006, ClientAction::Reconnect),
        (2999, ClientAction::Reconnect),
        (3000, ClientAction::Reconnect),
        (3499, ClientAction::Reconnect),
        (3500, ClientAction::Terminal),
        (3999, ClientAction::Terminal),
        (4000, ClientAction::Reconnect),
        (4499, ClientAction::Reconnect),
        (4500, ClientAction::Terminal),
        (4999, ClientAction::Terminal),
        (5000, ClientAction::Reconnect),
        (u32::MAX, ClientAction::Reconnect),
    ];
    for (code, class) in edges {
        assert_eq!(ClientAction::of_disconnect(code), class, "{code}");
    }
    assert_eq!(ClientAction::of_unsubscribe(2499), ClientAction::Terminal);
    assert_eq!(ClientAction::of_unsubscribe(2500), ClientAction::Resubscribe);
}

#[test]
fn a_custom_disconnect_fits_a_close_frame() {
    for code in [0, 1000, 2999, 5000, 65_536 + 3500, u32::MAX] {
        assert_eq!(Disconnect::custom(code, "x"), None, "{code}");
    }
    let bye = Disconnect::custom(4500, "bye").unwrap();
    assert_eq!((bye.code(), bye.reason(), bye.client_action()), (4500, "bye", ClientAction::Terminal));
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
        (TokenUse::Connect, KeyPending, E::Internal.into()),
        (TokenUse::Subscribe, KeyPending, E::Internal.into()),
        (TokenUse::Refresh, KeyPending, E::Internal.into()),
        (TokenUse::SubRefresh, KeyPending, E::Internal.into()),
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
