//! Every code of the protocol, and the test that reads it from a real socket. A code without one
//! says why nobody can see it yet; once somebody can, its line here moves.

use std::collections::BTreeMap;

use campanile::protocol::code::{DisconnectCode, ErrorCode, UnsubscribeCode};

use super::{endings, raw, refusals, slow, upgrade};

/// A line for each code: the test, which the compiler looks for, or the reason.
macro_rules! table {
    ($($code:literal => $($test:path)? $(, unseen: $reason:literal)?;)*) => {
        [$(($code, {
            $(let _ = $test;)?
            concat!($(stringify!($test),)? $("unseen: ", $reason)?)
        }),)*]
    };
}

#[test]
fn every_code_is_read_from_a_socket_or_says_why_not() {
    let lines = table! {
        100 => refusals::a_store_that_is_away_is_our_fault;
        101 => , unseen: "a client without a token is refused with 3501, or anonymous";
        102 => refusals::what_a_client_may_not_do_is_said;
        103 => refusals::what_a_client_may_not_do_is_said;
        104 => , unseen: "there are no remote procedures at all, which is 108";
        105 => refusals::what_a_client_may_not_do_is_said;
        106 => raw::a_flood_of_commands_is_answered_in_order;
        107 => refusals::what_a_client_may_not_do_is_said;
        108 => refusals::what_a_client_may_not_do_is_said;
        109 => refusals::a_token_out_of_time_is_to_be_renewed;
        110 => refusals::a_token_out_of_time_is_to_be_renewed;
        111 => , unseen: "no command has a rate yet";
        112 => refusals::a_place_that_is_gone_is_said;
        113 => , unseen: "there are no map subscriptions";
        2000 => endings::a_new_token_can_take_a_right_away;
        2500 => endings::a_replaced_history_ends_who_follows_it;
        2501 => endings::what_is_not_renewed_ends;
        2502 => , unseen: "only by a later method of the server API";
        3000 => raw::pings_and_close_are_answered_as_the_standard_says;
        3001 => upgrade::a_server_that_goes_away_tells_every_client;
        3004 => , unseen: "only by a panic, and none is known";
        3005 => endings::what_is_not_renewed_ends;
        3006 => , unseen: "a subscription of the connection's token has no end of its own yet";
        3008 => slow::a_slow_reader_is_told_so_and_nobody_else_feels_it;
        3009 => slow::who_takes_nothing_for_too_long_is_cut;
        3010 => endings::a_replaced_history_ends_who_follows_it;
        3011 => , unseen: "only by a later method of the server API";
        3012 => raw::a_client_that_says_nothing_is_not_kept;
        3013 => , unseen: "only in a cluster, while a node is in doubt";
        3014 => , unseen: "only by a later method of the server API";
        3500 => endings::tokens_that_cannot_be_end_the_connection;
        3501 => raw::broken_frames_have_their_codes;
        3502 => raw::a_client_that_says_nothing_is_not_kept;
        3503 => , unseen: "only by a later method of the server API";
        3504 => upgrade::a_full_node_lets_nobody_in;
        3505 => endings::tokens_that_cannot_be_end_the_connection;
        3506 => raw::broken_frames_have_their_codes;
        3507 => , unseen: "only on unidirectional transports";
        3508 => endings::tokens_that_cannot_be_end_the_connection;
        3509 => , unseen: "errors are not counted yet";
    };
    let table: BTreeMap<u16, &str> = lines.into_iter().collect();
    assert_eq!(table.len(), lines.len(), "a code stands here once");
    let errors = ErrorCode::ALL.iter().map(|code| code.code());
    let unsubscribes = UnsubscribeCode::ALL.iter().map(|code| code.code());
    let disconnects = DisconnectCode::ALL.iter().map(|code| code.code());
    let all: Vec<u16> = errors.chain(unsubscribes).chain(disconnects).collect();
    assert_eq!(table.keys().copied().collect::<Vec<_>>(), all);
    let unseen = table.values().filter(|line| line.starts_with("unseen: ")).count();
    assert!(table.values().all(|line| line.len() > 10));
    assert_eq!((table.len(), unseen), (40, 13), "a code that can be seen has a test");
}
