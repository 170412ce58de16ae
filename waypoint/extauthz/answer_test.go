package extauthz

import (
	"encoding/binary"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ambit-mesh/ambit/mesh/policy"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

// framed is a message of gRPC on the wire.
func framed(b []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(b))), b...)
}

// byGRPC is a response of gRPC with a status of 0.
func byGRPC(body []byte) *message.Response {
	return &message.Response{Status: 200, Body: message.Bytes(body, message.Fields{{Name: "grpc-status", Value: "0"}})}
}

// TestEdits: what an answer's options do to a header that has the field already, and to one that has not.
func TestEdits(t *testing.T) {
	yes, no := wrapperspb.Bool(true), wrapperspb.Bool(false)
	for _, c := range []struct {
		what                 string
		option               *corev3.HeaderValueOption
		request, response    string // of a header with x: 1
		bareReq, bareRespond string // of one without
	}{
		{"nothing said", &corev3.HeaderValueOption{}, "2", "1,2", "2", "2"},
		//lint:ignore SA1019 servers still say it in this older form
		{"append", &corev3.HeaderValueOption{Append: yes}, "1,2", "1,2", "2", "2"},
		//lint:ignore SA1019 servers still say it in this older form
		{"no append", &corev3.HeaderValueOption{Append: no}, "2", "2", "2", "2"},
		{"if absent", &corev3.HeaderValueOption{AppendAction: corev3.HeaderValueOption_ADD_IF_ABSENT}, "1", "1", "2", "2"},
		{"if present", &corev3.HeaderValueOption{AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS}, "2", "2", "", ""},
		{"overwrite", &corev3.HeaderValueOption{AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD}, "2", "2", "2", "2"},
	} {
		c.option.Header = &corev3.HeaderValue{Key: "X", RawValue: []byte("2")}
		m, err := proto.Marshal(&authv3.CheckResponse{Status: &status.Status{}, HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{
			Headers: []*corev3.HeaderValueOption{c.option}, ResponseHeadersToAdd: []*corev3.HeaderValueOption{c.option}}}})
		if err != nil {
			t.Fatal(err)
		}
		a, err := new(Config).Read(byGRPC(framed(m)))
		if err != nil || !a.Allowed {
			t.Fatalf("%s: %+v, %v", c.what, a, err)
		}
		for _, one := range []struct {
			edits  Edits
			header message.Fields
			want   string
		}{
			{a.ToBackend, message.Fields{{Name: "x", Value: "1"}}, c.request}, {a.ToBackend, nil, c.bareReq},
			{a.ToClient, message.Fields{{Name: "x", Value: "1"}}, c.response}, {a.ToClient, nil, c.bareRespond},
		} {
			before := len(one.header)
			one.edits.Apply(&one.header)
			if got, _ := one.header.Joined("x"); got != one.want {
				t.Errorf("%s, %d fields before: %q, want %q", c.what, before, got, one.want)
			}
		}
	}
}

// TestRefusedAnswers: what is not an answer is never a yes.
func TestRefusedAnswers(t *testing.T) {
	yes, err := proto.Marshal(&authv3.CheckResponse{Status: &status.Status{}})
	if err != nil {
		t.Fatal(err)
	}
	if a, err := new(Config).Read(byGRPC(framed(yes))); err != nil || !a.Allowed {
		t.Fatalf("a plain yes: %+v, %v", a, err)
	}
	compressed := framed(yes)
	compressed[0] = 1
	ended := func(code string) *message.Response {
		return &message.Response{Status: 200, Body: message.Bytes(framed(yes), message.Fields{{Name: "grpc-status", Value: code}})}
	}
	for what, resp := range map[string]*message.Response{
		"no body":              {Status: 200, Header: message.Fields{{Name: "grpc-status", Value: "0"}}},
		"no status":            {Status: 200, Body: message.Bytes(framed(yes), nil)},
		"a status of an error": ended("14"), "an odd status": ended("00"),
		"a status of HTTP": {Status: 503, Body: message.Bytes(framed(yes), message.Fields{{Name: "grpc-status", Value: "0"}})},
		"compressed":       byGRPC(compressed), "cut": byGRPC(framed(yes)[:3]), "two messages": byGRPC(append(framed(yes), framed(yes)...)),
		"not a message": byGRPC(framed([]byte("\xff\xff\xff"))), "too long": byGRPC(framed(make([]byte, maxAnswer))),
	} {
		if a, err := new(Config).Read(resp); err == nil || a.Allowed {
			t.Errorf("%s: %+v, %v", what, a, err)
		}
	}
}

// TestHTTPAnswers: what of an answer goes where.
func TestHTTPAnswers(t *testing.T) {
	is := func(names ...string) (out Names) {
		for _, n := range names {
			out = append(out, policy.Text{Value: n})
		}
		return out
	}
	header := message.Fields{{Name: "a", Value: "1"}, {Name: "b", Value: "2"}, {Name: "a", Value: "3"}, {Name: "location", Value: "/x"}, {Name: "content-length", Value: "5"}}
	all := &Config{HTTP: &HTTP{}}
	some := &Config{HTTP: &HTTP{ToBackend: is("a"), ToClient: is("b"), ToDenied: is("b")}}
	for _, c := range []struct {
		cfg    *Config
		status int
		want   Answer
	}{
		{all, 200, Answer{Allowed: true}},
		{some, 200, Answer{Allowed: true, ToBackend: Edits{{message.Field{Name: "a", Value: "1"}, Set}, {message.Field{Name: "a", Value: "3"}, Append}},
			ToClient: Edits{{message.Field{Name: "b", Value: "2"}, Set}}}},
		{all, 403, Answer{Status: 403, Header: header[:4], Body: []byte("no")}},
		{some, 302, Answer{Status: 302, Header: message.Fields{header[1], header[3]}, Body: []byte("no")}},
		{all, 201, Answer{Status: 201, Header: header[:4], Body: []byte("no")}},
	} {
		got, err := c.cfg.Read(&message.Response{Status: c.status, Header: header.Clone(), Body: message.String("no")})
		if err != nil {
			t.Errorf("%d: %v", c.status, err)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%d (-want +got):\n%s", c.status, diff)
		}
	}
	for _, status := range []int{101, 500, 503, 599} {
		if a, err := all.Read(&message.Response{Status: status}); err == nil || a.Allowed {
			t.Errorf("%d: %+v", status, a)
		}
	}
}

// FuzzRead: whatever is answered, what comes of it can be sent: changes of a header that it can have, or a status for clients.
func FuzzRead(f *testing.F) {
	for _, m := range []*authv3.CheckResponse{
		{Status: &status.Status{}},
		{Status: &status.Status{}, HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{
			Headers: []*corev3.HeaderValueOption{{Header: &corev3.HeaderValue{Key: "X-A", Value: "b"}}}, HeadersToRemove: []string{"x"}}}},
		{Status: &status.Status{Code: 7}, HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{Body: "no",
			Headers: []*corev3.HeaderValueOption{{Header: &corev3.HeaderValue{Key: "host", Value: "b"}}}}}},
	} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, false)
		f.Add([]byte("x-a: b\nlocation: c\nx-envoy-auth-headers-to-remove: host,\x00"), true)
	}
	any := Names{{Kind: policy.Present}}
	f.Fuzz(func(t *testing.T, in []byte, http bool) {
		cfg, resp := &Config{}, byGRPC(framed(in))
		if http {
			cfg.HTTP = &HTTP{ToBackend: any, ToClient: any}
			resp = &message.Response{Status: 200}
			for line := range strings.Lines(string(in)) {
				name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
				if message.ValidName(name) && message.ValidValue(value) { // a codec lets nothing else in
					resp.Header.Add(name, value)
				}
			}
		}
		a, err := cfg.Read(resp)
		if err != nil {
			return
		}
		header := a.Header.Clone()
		a.ToBackend.Apply(&header)
		a.ToClient.Apply(&header)
		for _, field := range header {
			if !message.ValidName(field.Name) || !message.ValidValue(field.Value) || message.Hop(field.Name) || field.Name == "content-length" {
				t.Errorf("a field %q: %q", field.Name, field.Value)
			}
		}
		if !a.Allowed && (a.Status < 200 || a.Status > 599) {
			t.Errorf("denied with status %d", a.Status)
		}
	})
}
