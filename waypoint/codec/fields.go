package codec

import (
	"strconv"
	"strings"
	"sync"

	"github.com/ambit-mesh/ambit/waypoint/message"
)

// fieldLists lends lists to write a header from.
var fieldLists = sync.Pool{New: func() any { return new([]message.Field) }}

// maxPooledFields is the longest list that is kept for others.
const maxPooledFields = 256

func putFields(l *[]message.Field) {
	if cap(*l) <= maxPooledFields {
		clear(*l)
		*l = (*l)[:0]
		fieldLists.Put(l)
	}
}

// framed tells whether a field is not copied from a message's header when it is written: what is said instead follows from the
// message.
func framed(name string) bool {
	return name == "content-length" || name == "host" || strings.HasPrefix(name, ":") || message.Hop(name)
}

// appendHeader appends what of a header goes to the other side on HTTP/2. te stays, if it is what HTTP/2 allows.
func appendHeader(l []message.Field, header message.Fields) []message.Field {
	for i := range header {
		if f := &header[i]; !framed(f.Name) || f.Name == "te" && f.Value == "trailers" {
			l = append(l, *f)
		}
	}
	return l
}

// appendTrailers appends what may be in a trailer (RFC 9110 section 6.5.1).
func appendTrailers(l []message.Field, trailers message.Fields) []message.Field {
	for i := range trailers {
		if f := &trailers[i]; !framed(f.Name) && f.Name != "te" {
			l = append(l, *f)
		}
	}
	return l
}

// lengthText is a content-length: as it came if it is in header, so that nothing is allocated.
func lengthText(header message.Fields, length int64) string {
	if v, ok := header.Lookup("content-length"); ok {
		if n, ok := parseLength(v); ok && n == length {
			return v
		}
	}
	return strconv.FormatInt(length, 10)
}

// parseLength reads a content-length: digits only, and not more than fit.
func parseLength(v string) (int64, bool) {
	if v == "" || len(v) > 18 {
		return 0, false
	}
	var n int64
	for i := range len(v) {
		if v[i] < '0' || v[i] > '9' {
			return 0, false
		}
		n = n*10 + int64(v[i]-'0')
	}
	return n, true
}

// declared returns what the content-length fields of a header say: Unknown if there is none; false if they are no number, or
// differ (RFC 9110 section 8.6).
func declared(header message.Fields) (int64, bool) {
	length := int64(message.Unknown)
	for i := range header {
		if header[i].Name != "content-length" {
			continue
		}
		n, ok := parseLength(header[i].Value)
		if !ok || length >= 0 && n != length {
			return 0, false
		}
		length = n
	}
	return length, true
}

// joinCookies makes one field of a cookie that came in crumbs (RFC 9113 section 8.2.3).
func joinCookies(header *message.Fields) {
	first, n := -1, 0
	for i := range *header {
		if (*header)[i].Name == "cookie" {
			if n++; n == 1 {
				first = i
			}
		}
	}
	if n < 2 {
		return
	}
	joined := strings.Join(header.Values("cookie"), "; ")
	rest := (*header)[:first+1]
	for _, f := range (*header)[first+1:] {
		if f.Name != "cookie" {
			rest = append(rest, f)
		}
	}
	rest[first].Value = joined
	*header = rest
}

// statusText is a status in three digits.
func statusText(status int) string {
	switch status {
	case 200:
		return "200"
	case 204:
		return "204"
	case 206:
		return "206"
	case 302:
		return "302"
	case 304:
		return "304"
	case 400:
		return "400"
	case 403:
		return "403"
	case 404:
		return "404"
	case 500:
		return "500"
	case 503:
		return "503"
	}
	return strconv.Itoa(status)
}
