#!/bin/sh
# Asks a bridge of zmqrt, with nothing but a shell and curl or wget. It comes from that bridge: GET /client.sh
#
#   sh client.sh [--url URL] [--max-tokens N] [--temperature T] PROMPT...      (or `-`: the prompt is standard input)
#
# ZMQRT_URL is the bridge (http://127.0.0.1:8000 without it), ZMQRT_API_KEY the key, where it asks for one.
# The answer is written as it is made. Exit status: 0 answered, 1 refused or failed, 2 called wrongly.

set -u
url=${ZMQRT_URL:-http://127.0.0.1:8000}
max_tokens=100
temperature=0.7

complain() {
    printf 'client.sh: %s\n' "$1" >&2
}

wrong() {
    complain "$1; sh client.sh [--url URL] [--max-tokens N] [--temperature T] PROMPT"
    exit 2
}

while [ $# -gt 0 ]; do
    case $1 in
        --url | --max-tokens | --temperature) [ $# -ge 2 ] || wrong "$1 needs a value" ;;
    esac
    case $1 in
        --url) url=$2 && shift 2 ;;
        --max-tokens) max_tokens=$2 && shift 2 ;;
        --temperature) temperature=$2 && shift 2 ;;
        -h | --help) sed -n '2,7s/^# \{0,1\}//p' "$0" && exit 0 ;;
        --) shift && break ;;
        -?*) wrong "there is no $1" ;;
        *) break ;;
    esac
done
[ $# -gt 0 ] || wrong "there is no prompt"
case $max_tokens$temperature in
    *[!0-9.]*) wrong "--max-tokens and --temperature are numbers" ;;
esac
url=${url%/}/infer

# Text as a string of JSON. Its bytes stay as they are, so it may be in any language.
quote() {
    LC_ALL=C tr -d '\000-\010\013\014\016-\037' | LC_ALL=C sed \
        -e 's/\\/\\\\/g' -e 's/"/\\"/g' -e "s/$(printf '\t')/\\\\t/g" -e "s/$(printf '\r')/\\\\r/g" |
        LC_ALL=C awk 'NR > 1 { printf "%s", "\\n" } { printf "%s", $0 }'
}

# The key stands in no command line, where every user of the machine could read it; with wget it needs a file for that.
# (That of BusyBox takes it from its command line alone; whoever shares such a machine needs curl.)
folder=
clean() {
    [ -z "$folder" ] || rm -rf "$folder"
}
trap clean EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# The body goes apart from the rest: before version 8.2, curl reads no lines of more than 100 KB there.
ask_by_curl() {
    key=
    [ -z "${ZMQRT_API_KEY:-}" ] || key="header = \"x-api-key: $(printf '%s' "$ZMQRT_API_KEY" | sed 's/[\\"]/\\&/g')\""
    printf '%s' "$1" | curl --silent --show-error --no-buffer --config /dev/fd/3 --data-binary @- 3<<END
url = "$url"
header = "Content-Type: application/json"
header = "Accept: text/event-stream"
$key
END
}

ask_by_wget() {
    printf '%s' "$1" >"$folder/body"
    {
        printf 'header = Content-Type: application/json\n'
        printf 'header = Accept: text/event-stream\n'
        [ -z "${ZMQRT_API_KEY:-}" ] || printf 'header = x-api-key: %s\n' "$ZMQRT_API_KEY"
    } >"$folder/wgetrc"
    if wget --version 2>/dev/null | grep -q GNU; then
        WGETRC="$folder/wgetrc" wget --no-verbose --content-on-error --tries=1 --read-timeout=0 \
            --post-file="$folder/body" --output-document=- "$url" 2>"$folder/said" || complain "$(tail -n 1 "$folder/said")"
    else # that of BusyBox reads no such file, and says of a refusal no more than its status
        set -- --header 'Content-Type: application/json' --header 'Accept: text/event-stream'
        [ -z "${ZMQRT_API_KEY:-}" ] || set -- "$@" --header "x-api-key: $ZMQRT_API_KEY"
        wget -q -O - "$@" --post-file "$folder/body" "$url"
    fi
}

# Bytes of a character, as octal numbers for printf.
utf8() {
    if [ "$1" -lt 128 ]; then
        printf '\\%o' "$1"
    elif [ "$1" -lt 2048 ]; then
        printf '\\%o' $((192 + $1 / 64)) $((128 + $1 % 64))
    elif [ "$1" -lt 65536 ]; then
        printf '\\%o' $((224 + $1 / 4096)) $((128 + $1 / 64 % 64)) $((128 + $1 % 64))
    else
        printf '\\%o' $((240 + $1 / 262144)) $((128 + $1 / 4096 % 64)) $((128 + $1 / 64 % 64)) $((128 + $1 % 64))
    fi
}

# What stands before the closing quote of a string of JSON, as text. No program is started for it: it comes token by token.
unquote() {
    rest=$1
    while :; do
        plain=${rest%%[\"\\]*}
        printf '%s' "$plain"
        rest=${rest#"$plain"}
        case $rest in
            \\?*) rest=${rest#?} ;;
            *) return 0 ;;
        esac
        tail=${rest#?}
        case $rest in
            n*) printf '\n' ;;
            t*) printf '\t' ;;
            r*) printf '\r' ;;
            b*) printf '\b' ;;
            f*) printf '\f' ;;
            u*)
                after=${tail#????}
                code=$((0x${tail%"$after"}))
                tail=$after
                case $tail in
                    \\u[dD][c-fC-F]*) # half a character: the other half follows
                        if [ "$code" -ge 55296 ] && [ "$code" -lt 56320 ]; then
                            tail=${tail#??}
                            after=${tail#????}
                            code=$((65536 + (code - 55296) * 1024 + 0x${tail%"$after"} - 56320))
                            tail=$after
                        fi
                        ;;
                esac
                # shellcheck disable=SC2059 # it is the format that is meant
                printf "$(utf8 "$code")"
                ;;
            *) printf '%s' "${rest%"$tail"}" ;;
        esac
        rest=$tail
    done
}

# What went wrong, in the words of the bridge.
refuse() {
    case $1 in
        *'"detail":"'*) complain "$(unquote "${1#*'"detail":"'}")" ;;
        *) complain "$1" ;;
    esac
}

show() {
    event=
    while IFS= read -r line || [ -n "$line" ]; do
        case $event/$line in
            */'event: '*) event=${line#event: } ;;
            token/'data: {"text":"'*) unquote "${line#'data: {"text":"'}" ;;
            error/'data: '*)
                printf '\n'
                refuse "$line"
                return 1
                ;;
            'done/data: '*)
                printf '\n'
                return 0
                ;;
            '/{'*)
                refuse "$line"
                return 1
                ;;
        esac
    done
    complain "no whole answer came from $url"
    return 1
}

if [ "$*" = - ]; then
    prompt=$(quote)
else
    prompt=$(printf '%s' "$*" | quote)
fi
body="{\"prompt\": \"$prompt\", \"max_tokens\": $max_tokens, \"temperature\": $temperature}"
if command -v curl >/dev/null 2>&1; then
    ask_by_curl "$body" | show
elif command -v wget >/dev/null 2>&1; then
    umask 077
    folder=$(mktemp -d) || exit 1
    ask_by_wget "$body" | show
else
    wrong "there is neither curl nor wget here"
fi
