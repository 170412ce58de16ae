package codec

import (
	"bufio"
	"bytes"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"

	"golang.org/x/net/http/httpguts"

	"github.com/ambit-mesh/ambit/waypoint/message"
)

// parser1 reads HTTP/1 heads of one connection.
//
// Lines that decide about the message's target, its end and its connection are judged by net/http; for those, and for what
// other readers might take for them, refuse is stricter. Other lines are a name and a value, and nothing else.
type parser1 struct {
	maxFields int
	fields    []message.Field // of the message; used again for the next
	*scratch                  // nil but while a head is read
}

// scratch is what it takes to read a head, and nobody needs afterwards.
type scratch struct {
	spans []span        // of the fields in head
	std   []byte        // start line, and the fields that net/http judges
	src   bytes.Reader  // of std
	br    *bufio.Reader // of src
	asked http.Request  // what net/http needs to know of the request, for a response
}

var scratches = sync.Pool{New: func() any {
	s := &scratch{}
	s.br = bufio.NewReaderSize(&s.src, 512)
	return s
}}

// begin gets what it takes to read a head, end gives it back.
func (p *parser1) begin() { p.scratch = scratches.Get().(*scratch) }

func (p *parser1) end() {
	scratches.Put(p.scratch)
	p.scratch = nil
}

// span is where a field is in its head: head[name:colon], head[from:to].
type span struct{ name, colon, from, to int }

// malformed is a head that is refused, and why.
type malformed struct {
	status int // that answers it
	reason string
}

func (m *malformed) Error() string { return m.reason }

func refuse(status int, format string, args ...any) error {
	return &malformed{status, fmt.Sprintf(format, args...)}
}

// judged tells whether net/http gets to see a field.
func judged(name string) bool {
	switch name {
	case "host", "content-length", "transfer-encoding", "connection":
		return true
	}
	return false
}

// split takes a head apart: fields, and std for net/http. It makes names lower-case where they are.
func (p *parser1) split(head []byte) error {
	start := bytes.Index(head, crlf)
	if line := head[:start]; bytes.IndexByte(line, '\r') >= 0 || bytes.IndexByte(line, 0) >= 0 {
		return refuse(400, "CR or NUL in the start line")
	}
	p.std = append(p.std[:0], head[:start+2]...)
	if err := p.splitFields(head, start+2); err != nil {
		return err
	}
	p.std = append(p.std, crlf...)
	return nil
}

var crlf = []byte("\r\n")

// splitFields takes the lines of head apart from at on.
func (p *parser1) splitFields(head []byte, at int) error {
	p.spans = p.spans[:0]
	for {
		n := bytes.Index(head[at:], crlf)
		if n <= 0 {
			break
		}
		if len(p.spans) == p.maxFields {
			return refuse(431, "more than %d header fields", p.maxFields)
		}
		s, err := splitField(head, at, at+n)
		if err != nil {
			return err
		}
		p.spans = append(p.spans, s)
		if judged(string(head[s.name:s.colon])) {
			p.std = append(p.std, head[at:at+n+2]...)
		}
		at += n + 2
	}
	text := string(head)
	clear(p.fields[:cap(p.fields)])
	p.fields = slices.Grow(p.fields[:0], len(p.spans))
	for _, s := range p.spans {
		p.fields = append(p.fields, message.Field{Name: text[s.name:s.colon], Value: text[s.from:s.to]})
	}
	return nil
}

// splitField takes one line apart, and makes its name lower-case.
func splitField(head []byte, at, end int) (span, error) {
	line := head[at:end]
	if line[0] == ' ' || line[0] == '\t' {
		return span{}, refuse(400, "a folded header line")
	}
	colon := bytes.IndexByte(line, ':')
	if colon <= 0 {
		return span{}, refuse(400, "a header line without a name")
	}
	for i, b := range line[:colon] {
		switch {
		case 'A' <= b && b <= 'Z':
			line[i] = b + 'a' - 'A'
		case !httpguts.IsTokenRune(rune(b)):
			return span{}, refuse(400, "a header name that is no token")
		}
	}
	from, to := colon+1, len(line)
	for from < to && (line[from] == ' ' || line[from] == '\t') {
		from++
	}
	for to > from && (line[to-1] == ' ' || line[to-1] == '\t') {
		to--
	}
	for _, b := range line[from:to] {
		if b < ' ' && b != '\t' || b == 0x7f {
			return span{}, refuse(400, "a control character in the value of header field %q", line[:colon])
		}
	}
	return span{at, at + colon, at + from, at + to}, nil
}

// framing is what the fields of a head say about the message's end and its connection.
type framing struct {
	chunked bool
	length  int64 // Unknown: none was said
	upgrade string
	close   bool // "connection: close"
	te      bool // "te" with trailers
}

// frame reads what concerns the message's end and its connection, and takes that out of fields.
func (p *parser1) frame() (framing, error) {
	f := framing{length: message.Unknown}
	codings := 0
	var listed []string // in connection
	upgrade := ""
	for i := range p.fields {
		switch v := p.fields[i].Value; p.fields[i].Name {
		case "transfer-encoding":
			if codings++; !strings.EqualFold(v, "chunked") {
				return f, refuse(501, "transfer-encoding %q", v)
			}
			f.chunked = true
		case "connection":
			for token := range strings.SplitSeq(v, ",") {
				listed = append(listed, strings.ToLower(strings.Trim(token, " \t")))
			}
		case "upgrade":
			upgrade = v
		case "te":
			for token := range strings.SplitSeq(v, ",") {
				f.te = f.te || strings.EqualFold(strings.Trim(token, " \t"), "trailers")
			}
		}
	}
	length, ok := declared(p.fields)
	switch {
	case !ok:
		return f, refuse(400, "content-length is no number, or there are several")
	case codings > 1:
		return f, refuse(400, "transfer-encoding twice")
	case codings > 0 && length >= 0:
		return f, refuse(400, "both transfer-encoding and content-length")
	}
	f.length = length
	for _, token := range listed {
		switch token {
		case "close":
			f.close = true
		case "upgrade":
			f.upgrade = upgrade
		}
	}
	kept := p.fields[:0]
	for _, field := range p.fields {
		if field.Name == "te" && f.te {
			field.Value = "trailers"
			f.te = false // once
		} else if message.Hop(field.Name) || field.Name != "content-length" && slices.Contains(listed, field.Name) {
			continue
		}
		kept = append(kept, field)
	}
	p.fields = kept
	return f, nil
}

// reader returns std for net/http.
func (p *parser1) reader() *bufio.Reader {
	p.src.Reset(p.std)
	p.br.Reset(&p.src)
	return p.br
}

// head1 is a request that was read, without its body.
type head1 struct {
	framing
	keep bool // the connection, as far as the client is concerned
}

// request reads a request's head into req.
func (p *parser1) request(head []byte, req *message.Request) (head1, error) {
	var h head1
	p.begin()
	defer p.end()
	if err := p.split(head); err != nil {
		return h, err
	}
	var err error
	if h.framing, err = p.frame(); err != nil {
		return h, err
	}
	std, err := http.ReadRequest(p.reader())
	switch {
	case err != nil:
		return h, refuse(400, "%v", err)
	case std.ProtoMajor != 1 || std.ProtoMinor > 1:
		return h, refuse(505, "version %q", std.Proto)
	case h.chunked && std.ProtoMinor == 0:
		return h, refuse(400, "transfer-encoding in HTTP/1.0")
	}
	if std.ContentLength >= 0 == h.chunked || !h.chunked && std.ContentLength != max(0, h.length) {
		return h, refuse(400, "the end of the request is not certain")
	}
	h.length = std.ContentLength
	h.keep = !std.Close && !h.close
	req.Method, req.Scheme, req.Authority = std.Method, "http", std.Host
	if std.ProtoMinor == 0 {
		req.Proto = message.HTTP10
	}
	if req.Path, err = target(req, std); err != nil {
		return h, err
	}
	kept := p.fields[:0]
	for _, f := range p.fields {
		switch f.Name {
		case "host":
		case "expect":
			if !strings.EqualFold(f.Value, "100-continue") {
				return h, refuse(417, "expect %q", f.Value)
			}
			req.Expect = h.length != 0 && req.Proto == message.HTTP11
		default:
			kept = append(kept, f)
		}
	}
	p.fields = kept
	req.Header = p.fields
	if h.upgrade != "" && req.Proto == message.HTTP11 && h.length == 0 && !strings.HasPrefix(strings.ToLower(h.upgrade), "h2c") {
		req.Upgrade = h.upgrade
	}
	return h, checkRequest(req)
}

// target returns the path and query of a request's target, and takes scheme and authority from one in absolute form (RFC
// 9112 section 3.2).
func target(req *message.Request, std *http.Request) (string, error) {
	uri := std.RequestURI
	if req.Method == "CONNECT" || strings.HasPrefix(uri, "/") || uri == "*" {
		return uri, nil
	}
	scheme, rest, ok := strings.Cut(uri, "://")
	if !ok || std.URL.User != nil {
		return "", refuse(400, "target %q", uri)
	}
	req.Scheme = scheme
	authority, path := rest, ""
	if i := strings.IndexAny(rest, "/?"); i >= 0 {
		authority, path = rest[:i], rest[i:]
	}
	if authority == "" || !strings.EqualFold(authority, std.Host) {
		return "", refuse(400, "target %q", uri)
	}
	switch {
	case path == "" && req.Method == "OPTIONS":
		return "*", nil
	case !strings.HasPrefix(path, "/"):
		return "/" + path, nil
	}
	return path, nil
}

// response reads the head of the response to a request of method.
func (p *parser1) response(head []byte, resp *message.Response, method string) (head1, error) {
	var h head1
	p.begin()
	defer p.end()
	if err := p.split(head); err != nil {
		return h, err
	}
	var err error
	if h.framing, err = p.frame(); err != nil {
		return h, err
	}
	p.asked.Method = method
	std, err := http.ReadResponse(p.reader(), &p.asked)
	switch {
	case err != nil:
		return h, err
	case std.ProtoMajor != 1 || std.StatusCode < 100 || std.StatusCode > 999:
		return h, refuse(502, "version %q or status %q", std.Proto, std.Status)
	case h.chunked && std.ProtoMinor == 0:
		return h, refuse(502, "transfer-encoding in HTTP/1.0")
	}
	h.keep = !std.Close && !h.close
	resp.Status, resp.Header = std.StatusCode, p.fields
	if std.ProtoMinor == 0 {
		resp.Proto = message.HTTP10
	}
	return h, nil
}
