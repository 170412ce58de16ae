package message

import (
	"strings"

	"golang.org/x/net/http/httpguts"
)

// ValidName tells whether a field's name is a token in lower case (RFC 9110 section 5.1, RFC 9113 section 8.2.1).
func ValidName(name string) bool {
	if name == "" {
		return false
	}
	for i := range len(name) {
		if b := name[i]; 'A' <= b && b <= 'Z' || !httpguts.IsTokenRune(rune(b)) {
			return false
		}
	}
	return true
}

// ValidValue tells whether a field's value can be sent: no control characters but tab (RFC 9110 section 5.5).
func ValidValue(value string) bool { return httpguts.ValidHeaderFieldValue(value) }

// Hop tells whether a field concerns one connection only, or says how a message is framed (RFC 9110 section 7.6.1). Codecs
// take these out of what they read, and leave them out of what they write, whoever put them there: who adds one to a header
// changes nothing on the wire. "te: trailers" is the exception: it stays, since gRPC asks for it.
func Hop(name string) bool {
	switch name {
	case "connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "te", "http2-settings":
		return true
	}
	return false
}

// ValidAuthority tells whether a string can be the authority of a request: a host as RFC 3986 section 3.2.2 allows it, and
// perhaps a port; no user information.
func ValidAuthority(authority string) bool {
	return authority != "" && !strings.ContainsAny(authority, "@/\\?#,") && httpguts.ValidHostHeader(authority)
}

// ValidPath tells whether a string can be the path and query of a request: "/" and what follows, or "*"; without white
// space, control characters or a fragment.
func ValidPath(path string) bool {
	if path == "*" {
		return true
	}
	if path == "" || path[0] != '/' {
		return false
	}
	for i := range len(path) {
		if b := path[i]; b <= ' ' || b == 0x7f || b == '#' {
			return false
		}
	}
	return true
}

// ValidMethod tells whether a string can be a method (RFC 9110 section 9.1).
func ValidMethod(method string) bool { return method != "" && httpguts.ValidHeaderFieldName(method) }
