package message

// Protocol is the version of HTTP that carried a message.
type Protocol uint8

// Protocols.
const (
	HTTP11 Protocol = iota
	HTTP10
	HTTP2
)

// String is as access logs write it.
func (p Protocol) String() string {
	switch p {
	case HTTP10:
		return "HTTP/1.0"
	case HTTP2:
		return "HTTP/2"
	}
	return "HTTP/1.1"
}

// Unknown is the length of a body that nobody has told.
const Unknown = -1

// Request is a request on its way to a backend. One that a server's codec hands out belongs to the exchange: it and its
// strings' backing are valid, and may be changed, until the handler returns; Clone what must live longer.
type Request struct {
	// Method is a token, case-sensitive. CONNECT never gets here.
	Method string
	// Scheme is "http" or "https", as the client believes.
	Scheme string
	// Authority is the host, and the port if the client named one, in lower case; "" only from HTTP/1.0. It is sent as :authority
	// or Host.
	Authority string
	// Path is the path with the query, as it came; "*" for OPTIONS of the whole server.
	Path string
	// Header has no pseudo-fields, no host, and nothing of one connection only (Hop). A content-length stays as it came, to
	// be looked at: what is sent follows from Length. An expect is in Expect.
	Header Fields
	// Body is nil if there is none. Whoever takes the request over closes it.
	Body Body
	// Length is how many bytes Body has, or Unknown. It is 0 if Body is nil.
	Length int64
	// Proto is how it came.
	Proto Protocol
	// Upgrade is what the client would rather speak on the connection, as it named it ("websocket"); "" for nothing. Only
	// HTTP/1.1 has that, towards the backend as well.
	Upgrade string
	// Expect says that the client waits for status 100 before it sends Body. The backend is asked in turn; the client is told
	// when Body is first pulled.
	Expect bool
}

// Clone returns a request of its own with the same header, without the body.
func (r *Request) Clone() *Request {
	c := *r
	c.Header = r.Header.Clone()
	c.Body, c.Length = nil, 0
	return &c
}

// SplitPath returns the path and the query of Path; query is without its question mark.
func (r *Request) SplitPath() (path, query string) {
	for i := range len(r.Path) {
		if r.Path[i] == '?' {
			return r.Path[:i], r.Path[i+1:]
		}
	}
	return r.Path, ""
}

// Response is a response on its way to a client, or one of status 1xx before it.
type Response struct {
	// Status is 100 to 999.
	Status int
	// Header is as in Request.
	Header Fields
	// Body is nil if there is none, as always with HEAD, 204 and 304. Whoever takes the response over closes it.
	Body Body
	// Length is how many bytes Body has, or Unknown. Without a Body it is what content-length says if there is one (HEAD, 304),
	// else Unknown or 0.
	Length int64
	// Proto is how it came.
	Proto Protocol
	// Tunnel is set with status 101: the connection, which now speaks Upgrade. Whoever takes the response over closes it.
	Tunnel  Tunnel
	Upgrade string
}
