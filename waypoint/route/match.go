package route

import (
	"regexp"
	"strconv"
	"strings"

	"github.com/ambit-mesh/ambit/waypoint/message"
)

// conditions are what a request must meet beyond what the index has seen to: all of them.
type conditions struct {
	path      pathMatch
	method    string // "" for any; what a header condition on :method with a plain value becomes
	headers   []headerMatch
	query     []queryMatch
	principal []stringMatch
	grpc      bool
}

// pathMatch is the condition on the path. Exactly one kind of it is set.
type pathMatch struct {
	kind   pathKind
	value  string
	fold   bool // the case does not count
	regex  *regexp.Regexp
	length int // of what is matched, for rewrite; -1: all
}

type pathKind uint8

const (
	pathExact pathKind = iota
	pathPrefix
	pathSegments // a prefix that ends where a segment ends
	pathRegex
)

func (p *pathMatch) match(path string) bool {
	if p.kind == pathRegex {
		return p.regex.MatchString(path)
	}
	if len(path) < len(p.value) {
		return false
	}
	head := path[:len(p.value)]
	if head != p.value && !(p.fold && strings.EqualFold(head, p.value)) {
		return false
	}
	switch p.kind {
	case pathExact:
		return len(path) == len(p.value)
	case pathSegments:
		return len(path) == len(p.value) || path[len(p.value)] == '/'
	}
	return true
}

// match tells whether the request meets the conditions but for the path.
func (c *conditions) match(req *message.Request, client Client, query string) bool {
	if c.method != "" && c.method != req.Method {
		return false
	}
	for i := range c.principal {
		if !c.principal[i].match(client.Principal) {
			return false
		}
	}
	for i := range c.headers {
		if !c.headers[i].match(req) {
			return false
		}
	}
	for i := range c.query {
		if !c.query[i].match(query) {
			return false
		}
	}
	return !c.grpc || isGRPC(req)
}

func isGRPC(req *message.Request) bool {
	rest, ok := strings.CutPrefix(req.Header.Get("content-type"), "application/grpc")
	return ok && (rest == "" || rest[0] == '+' || rest[0] == ';')
}

// stringMatch is a condition on a string.
type stringMatch struct {
	kind  stringKind
	value string // in lower case if fold
	fold  bool   // the case does not count
	regex *regexp.Regexp
}

type stringKind uint8

const (
	stringExact stringKind = iota
	stringPrefix
	stringSuffix
	stringContains
	stringRegex
	// stringNamespace: a SPIFFE identity of the namespace value. It is what one common regular expression becomes.
	stringNamespace
)

func (s *stringMatch) match(v string) bool {
	switch s.kind {
	case stringExact:
		return v == s.value || s.fold && strings.EqualFold(v, s.value)
	case stringRegex:
		return s.regex.MatchString(v)
	case stringNamespace:
		return namespaceOf(v) == s.value
	case stringContains:
		if s.fold {
			v = strings.ToLower(v)
		}
		return strings.Contains(v, s.value)
	}
	n := len(s.value)
	if len(v) < n {
		return false
	}
	part := v[:n]
	if s.kind == stringSuffix {
		part = v[len(v)-n:]
	}
	return part == s.value || s.fold && strings.EqualFold(part, s.value)
}

// namespaceOf returns the namespace of a SPIFFE identity that is followed by more; "" if it has none.
func namespaceOf(id string) string {
	rest, ok := strings.CutPrefix(id, "spiffe://")
	if !ok {
		return ""
	}
	i := strings.IndexByte(rest, '/')
	if i < 1 {
		return ""
	}
	if rest, ok = strings.CutPrefix(rest[i:], "/ns/"); !ok {
		return ""
	}
	if i = strings.IndexByte(rest, '/'); i < 0 {
		return ""
	}
	return rest[:i]
}

// namespacePattern is the regular expression that stringNamespace stands for.
var namespacePattern = regexp.MustCompile(`^\^?spiffe://\[\^/\]\+/ns/([a-z0-9-]+)/\.\*\$?$`)

// headerMatch is a condition on a header field, or a pseudo-field.
type headerMatch struct {
	name string // in lower case
	// kind says what of the field is looked at.
	kind        headerKind
	value       stringMatch
	from, until int64 // of a range; until is not in it
	invert      bool
	emptyIfNone bool // a missing field is taken for an empty one
}

type headerKind uint8

const (
	headerValue headerKind = iota
	headerPresent
	headerAbsent
	headerRange
)

func (m *headerMatch) match(req *message.Request) bool {
	v, ok := field(req, m.name)
	if !ok && !m.emptyIfNone {
		// A condition on the value of a field that is missing does not hold, inverted or not.
		return m.kind == headerAbsent && !m.invert || m.kind == headerPresent && m.invert
	}
	var holds bool
	switch m.kind {
	case headerPresent:
		holds = true
	case headerRange:
		n, err := strconv.ParseInt(v, 10, 64)
		holds = err == nil && n >= m.from && n < m.until
	case headerValue:
		holds = m.value.match(v)
	}
	return holds != m.invert
}

// field returns the value of a header field; several are joined by ",".
func field(req *message.Request, name string) (string, bool) {
	if name[0] != ':' {
		if name == "host" {
			return req.Authority, req.Authority != ""
		}
		return req.Header.Joined(name)
	}
	switch name {
	case ":method":
		return req.Method, true
	case ":path":
		return req.Path, true
	case ":authority":
		return req.Authority, req.Authority != ""
	case ":scheme":
		return req.Scheme, true
	}
	return "", false
}

// queryMatch is a condition on the first query parameter of a name.
type queryMatch struct {
	name    string
	present bool // that it is there (or, with absent, is not) is all that counts
	absent  bool
	value   stringMatch
}

func (m *queryMatch) match(query string) bool {
	v, ok := parameter(query, m.name)
	if m.present {
		return ok != m.absent
	}
	return ok && m.value.match(v)
}

// parameter returns the first query parameter of a name, with percent-encoding decoded. It allocates only if there is any.
func parameter(query, name string) (string, bool) {
	for query != "" {
		var one string
		one, query, _ = strings.Cut(query, "&")
		key, value, _ := strings.Cut(one, "=")
		if key == name || strings.IndexByte(key, '%') >= 0 && unescape(key) == name {
			return unescape(value), one != ""
		}
	}
	return "", false
}

// unescape decodes percent-encoding; what is none stays.
func unescape(s string) string {
	if strings.IndexByte(s, '%') < 0 {
		return s
	}
	out := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) && hex(s[i+1]) >= 0 && hex(s[i+2]) >= 0 {
			out = append(out, byte(hex(s[i+1])<<4|hex(s[i+2])))
			i += 2
			continue
		}
		out = append(out, s[i])
	}
	return string(out)
}
