package extauthz

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/ambit-mesh/ambit/waypoint/message"
)

// Names of fields and paths, Envoy's own.
const (
	pathCheck        = "/envoy.service.auth.v3.Authorization/Check"
	fieldPartial     = "x-envoy-auth-partial-body"
	fieldRemove      = "x-envoy-auth-headers-to-remove"
	metadataTokens   = "envoy.filters.http.jwt_authn"
	metadataPayload  = "payload"
	grpcPrefixLength = 5 // bytes before a message of gRPC
)

// Question is what is asked about.
type Question struct {
	// Request is not changed, and its body not read.
	Request *message.Request
	// Source is the client's address, Destination what it asked for.
	Source, Destination netip.AddrPort
	// Principal is the client's identity, "" for none.
	Principal string
	Time      time.Time
	// Body is what Config.Body lets be shown; Partial tells that there is more.
	Body    []byte
	Partial bool
	// Claims are those of the request's token, nil for none.
	Claims map[string]any
}

// Ask makes the request to be sent.
func (c *Config) Ask(q Question) (*message.Request, error) {
	if c.HTTP != nil {
		return c.askHTTP(q), nil
	}
	m, err := proto.Marshal(c.check(q))
	if err != nil {
		return nil, fmt.Errorf("encode the question: %w", err)
	}
	body := binary.BigEndian.AppendUint32(make([]byte, 1, grpcPrefixLength+len(m)), uint32(len(m)))
	body = append(body, m...)
	out := &message.Request{
		Method: "POST", Scheme: "http", Authority: c.Authority, Path: pathCheck, Proto: message.HTTP2, Body: message.Bytes(body, nil), Length: int64(len(body)),
		Header: message.Fields{{Name: "content-type", Value: "application/grpc"}, {Name: "te", Value: "trailers"}},
	}
	if c.Timeout > 0 {
		out.Header.Add("grpc-timeout", strconv.FormatInt(min(c.Timeout.Milliseconds(), 99999999), 10)+"m")
	}
	return out, nil
}

// check is the message that gRPC asks with. Text in it has to be UTF-8.
func (c *Config) check(q Question) *authv3.CheckRequest {
	r := q.Request
	header := map[string]string{":authority": text(r.Authority), ":method": text(r.Method), ":path": text(r.Path), ":scheme": text(r.Scheme)}
	for _, f := range r.Header {
		if header[f.Name] != "" || c.Headers != nil && !c.Headers.has(f.Name) {
			continue
		}
		header[f.Name] = text(joined(r.Header, f.Name))
	}
	h := &authv3.AttributeContext_HttpRequest{
		Id: header["x-request-id"], Method: text(r.Method), Headers: header, Path: text(r.Path), Host: text(r.Authority), Scheme: text(r.Scheme),
		Protocol: r.Proto.String(), Size: r.Length,
	}
	if c.Body != nil {
		if c.Body.Raw {
			h.RawBody = q.Body
		} else {
			h.Body = text(string(q.Body))
		}
		header[fieldPartial] = strconv.FormatBool(q.Partial)
	}
	out := &authv3.AttributeContext{
		Source:      &authv3.AttributeContext_Peer{Address: address(q.Source), Principal: q.Principal},
		Destination: &authv3.AttributeContext_Peer{Address: address(q.Destination)},
		Request:     &authv3.AttributeContext_Request{Time: timestamppb.New(q.Time), Http: h},
	}
	if c.Claims && q.Claims != nil {
		if payload, err := structpb.NewStruct(q.Claims); err == nil {
			out.MetadataContext = &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{
				metadataTokens: {Fields: map[string]*structpb.Value{metadataPayload: structpb.NewStructValue(payload)}},
			}}
		}
	}
	return &authv3.CheckRequest{Attributes: out}
}

func address(a netip.AddrPort) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: a.Addr().String(), PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(a.Port())},
	}}}
}

// joined is all values of a field; those of cookie go by their own rule (RFC 9113 section 8.2.3).
func joined(header message.Fields, name string) string {
	if name == "cookie" {
		return strings.Join(header.Values(name), "; ")
	}
	v, _ := header.Joined(name)
	return v
}

// text replaces what is not UTF-8. Envoy's rule.
func text(s string) string { return strings.ToValidUTF8(s, "!") }

// shownByHTTP tells whether a field is shown whatever the settings say.
func shownByHTTP(name string) bool { return name == "authorization" }

func (c *Config) askHTTP(q Question) *message.Request {
	r := q.Request
	out := &message.Request{
		Method: r.Method, Scheme: "http", Authority: r.Authority, Path: c.HTTP.PathPrefix + r.Path, Proto: message.HTTP11, Length: int64(len(q.Body)),
	}
	if len(q.Body) > 0 {
		out.Body = message.Bytes(q.Body, nil)
	}
	for _, f := range r.Header {
		switch {
		case f.Name == "content-length" || message.Hop(f.Name):
		case shownByHTTP(f.Name) || c.Headers.has(f.Name):
			out.Header = append(out.Header, f)
		}
	}
	if c.Body != nil {
		out.Header.Set(fieldPartial, strconv.FormatBool(q.Partial))
	}
	for _, f := range c.HTTP.Add {
		out.Header.Set(f.Name, f.Value)
	}
	return out
}
