//! The command that made a report, as it may be shown around: whoever reads it should be able to run
//! it again, and learn no secret from it.

/// The command of this run, as it may be shown around.
pub fn shown() -> String {
    let words: Vec<String> = std::env::args().skip(1).collect();
    format!("loadtest {}", without_secrets(&words.join(" ")))
}

fn without_secrets(command: &str) -> String {
    const SECRETS: [&str; 4] = ["--token", "--jwt-secret", "--api-key", "--secret"];
    let mut hide = false;
    let words = command.split(' ').map(|word| {
        let (option, value) =
            word.split_once('=').map_or((word, None), |(option, value)| (option, Some(value)));
        let secret = SECRETS.contains(&option);
        if std::mem::replace(&mut hide, secret && value.is_none()) {
            return "…".to_owned();
        }
        match value {
            Some(_) if secret => format!("{option}=…"),
            // A database's URL may hold its password.
            Some(_) if option.ends_with("-url") => format!("{option}=…"),
            _ => without_password(word),
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

/// `scheme://user:password@host` without what stands before the at sign.
fn without_password(word: &str) -> String {
    match word.split_once("://").and_then(|(scheme, rest)| Some((scheme, rest.split_once('@')?.1))) {
        Some((scheme, rest)) => format!("{scheme}://…@{rest}"),
        None => word.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_without_its_secrets() {
        let shown = without_secrets(
            "fanout --url http://x --api-key k1 --token=k2 --pid 7 --jwt-secret k3 --database-url postgres://me:pw@h/d --redis-url=redis://:pw@h",
        );
        let expected = "fanout --url http://x --api-key … --token=… --pid 7 --jwt-secret … --database-url postgres://…@h/d --redis-url=…";
        assert_eq!(shown, expected);
    }
}
