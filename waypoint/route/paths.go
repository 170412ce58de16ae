package route

import "strings"

// Paths says how paths are normalised before they are matched, so that no way of writing one gets around a route or a policy.
type Paths struct {
	// Normalize removes dot segments (RFC 3986 section 5.2.4), turns back-slashes into slashes, and decodes what needs no
	// percent-encoding (section 6.2.2.2). An encoded slash stays.
	Normalize bool
	// MergeSlashes makes one slash of several.
	MergeSlashes bool
	// EscapedSlashes says what becomes of %2F and %5C. It comes first.
	EscapedSlashes EscapedSlashes
}

// EscapedSlashes says what becomes of %2F and %5C in a path.
type EscapedSlashes uint8

// What can become of them.
const (
	KeepSlashes EscapedSlashes = iota
	// RejectSlashes answers the request 400.
	RejectSlashes
	// DecodeSlashes makes slashes of them.
	DecodeSlashes
	// RedirectSlashes answers the request 307 to the path with slashes.
	RedirectSlashes
)

// PathVerdict is what becomes of a request.
type PathVerdict uint8

// Verdicts.
const (
	// PathTaken: the request goes on with the path that was returned.
	PathTaken PathVerdict = iota
	// PathRefused: it is answered 400.
	PathRefused
	// PathRedirected: it is answered 307 to the path that was returned.
	PathRedirected
)

// Apply normalises the path of a request, which may have a query; that is left alone. It allocates only if it changes something.
func (p Paths) Apply(target string) (string, PathVerdict) {
	if p == (Paths{}) || target == "" || target[0] != '/' {
		return target, PathTaken
	}
	path, query := target, ""
	if i := strings.IndexByte(target, '?'); i >= 0 {
		path, query = target[:i], target[i:]
	}
	if !p.suspicious(path) {
		return target, PathTaken
	}
	verdict := PathTaken
	out := make([]byte, 0, len(target))
	out, decoded, ok := p.decode(out, path)
	if !ok {
		return target, PathRefused
	}
	if decoded && p.EscapedSlashes == RedirectSlashes {
		verdict = PathRedirected
	}
	if p.Normalize {
		out = removeDots(out)
	}
	if p.MergeSlashes {
		out = mergeSlashes(out)
	}
	if string(out) == path {
		return target, verdict
	}
	return string(append(out, query...)), verdict
}

// suspicious tells whether a path may need any work.
func (p Paths) suspicious(path string) bool {
	for i := range len(path) {
		switch path[i] {
		case '%', '\\':
			return true
		case '/':
			if i+1 < len(path) && (path[i+1] == '.' || path[i+1] == '/' && p.MergeSlashes) {
				return true
			}
		}
	}
	return false
}

// decode appends path to out with what is to be decoded decoded. It reports whether a slash was, and false for ok if the path
// is refused.
func (p Paths) decode(out []byte, path string) (_ []byte, slash, ok bool) {
	stray := -3 // where in out the last percent sign is that encodes nothing
	for i := 0; i < len(path); i++ {
		b := path[i]
		switch {
		case b == '\\' && p.Normalize:
			b = '/'
		case b == '%' && (i+2 >= len(path) || hex(path[i+1]) < 0 || hex(path[i+2]) < 0):
			stray = len(out)
		case b == '%':
			v := byte(hex(path[i+1])<<4 | hex(path[i+2]))
			switch {
			case v == '/' || v == '\\':
				switch p.EscapedSlashes {
				case RejectSlashes:
					return nil, false, false
				case DecodeSlashes, RedirectSlashes:
					out, slash = append(out, '/'), true
					i += 2
					continue
				}
			case v == 0 && p.Normalize:
				return nil, false, false
			case hex(v) >= 0 && len(out)-stray <= 2: // decoded, it would be an escape with that sign
			case p.Normalize && unreserved(v):
				out = append(out, v)
				i += 2
				continue
			}
		}
		out = append(out, b)
	}
	return out, slash, true
}

// removeDots removes dot segments in place.
func removeDots(path []byte) []byte {
	out := path[:0]
	for i := 0; i < len(path); { // path[i] is a slash
		end := i + 1
		for end < len(path) && path[end] != '/' {
			end++
		}
		segment := path[i+1 : end]
		last := end == len(path)
		switch {
		case string(segment) == ".":
			if last {
				out = append(out, '/')
			}
		case string(segment) == "..":
			for len(out) > 0 {
				out = out[:len(out)-1]
				if path[len(out)] == '/' { // out is a part of path that was written already
					break
				}
			}
			if last {
				out = append(out, '/')
			}
		default:
			out = append(out, path[i:end]...)
		}
		i = end
	}
	if len(out) == 0 {
		out = append(out, '/')
	}
	return out
}

func mergeSlashes(path []byte) []byte {
	out := path[:0]
	for i, b := range path {
		if b == '/' && i > 0 && out[len(out)-1] == '/' {
			continue
		}
		out = append(out, b)
	}
	return out
}

// hex returns the value of a hexadecimal digit, -1 for none.
func hex(b byte) int {
	switch {
	case '0' <= b && b <= '9':
		return int(b - '0')
	case 'a' <= b && b <= 'f':
		return int(b-'a') + 10
	case 'A' <= b && b <= 'F':
		return int(b-'A') + 10
	}
	return -1
}

// unreserved tells whether a character never needs percent-encoding (RFC 3986 section 2.3).
func unreserved(b byte) bool {
	return 'a' <= b && b <= 'z' || 'A' <= b && b <= 'Z' || '0' <= b && b <= '9' || b == '-' || b == '.' || b == '_' || b == '~'
}
