package extauthz

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/waypoint/message"
)

// maxAnswer bounds the body of an answer, in bytes.
const maxAnswer = 1 << 20

// Answer is what was decided.
type Answer struct {
	Allowed bool
	// ToBackend are changes of the request, ToClient of its response, if it is allowed.
	ToBackend, ToClient Edits
	// Status, Header and Body are what the client gets if it is not.
	Status int
	Header message.Fields
	Body   []byte
}

// Edits are changes of a header, in their order.
type Edits []Edit

// Edit is one change.
type Edit struct {
	Field  message.Field
	Action Action
}

// Action is what becomes of a field.
type Action uint8

// Actions.
const (
	// Set makes the field the only one of its name.
	Set Action = iota
	// Append adds it.
	Append
	// IfAbsent adds it if there is none, IfPresent sets it if there is one.
	IfAbsent
	IfPresent
	// Remove removes all of its name.
	Remove
)

// Apply makes the changes.
func (e Edits) Apply(to *message.Fields) {
	for _, one := range e {
		switch f := one.Field; {
		case one.Action == Remove:
			to.Del(f.Name)
		case one.Action == Append || one.Action == IfAbsent && !to.Has(f.Name):
			to.Add(f.Name, f.Value)
		case one.Action == Set || one.Action == IfPresent && to.Has(f.Name):
			to.Set(f.Name, f.Value)
		}
	}
}

// add notes a change that can be made.
func (e *Edits) add(name, value string, action Action) error {
	name = strings.ToLower(name)
	switch {
	case !message.ValidName(name) || !message.ValidValue(value):
		return fmt.Errorf("the answer wants field %q, which cannot be", name)
	case message.Hop(name) || name == "content-length" || name == "host":
		return fmt.Errorf("the answer wants to change field %q, which is not for others to change", name)
	}
	*e = append(*e, Edit{message.Field{Name: name, Value: value}, action})
	return nil
}

// Read reads the answer. It takes resp over. An error means that there is none.
func (c *Config) Read(resp *message.Response) (Answer, error) {
	if resp.Tunnel != nil {
		resp.Tunnel.Close()
		return Answer{}, errors.New("the answer is an upgrade")
	}
	body, trailers, err := readAll(resp.Body)
	if err != nil {
		return Answer{}, err
	}
	if c.HTTP != nil {
		return c.readHTTP(resp, body)
	}
	if resp.Status != 200 {
		return Answer{}, fmt.Errorf("the answer has status %d, where gRPC has 200", resp.Status)
	}
	status, ok := resp.Header.Lookup("grpc-status")
	said := resp.Header.Get("grpc-message")
	if !ok {
		status, said = trailers.Get("grpc-status"), trailers.Get("grpc-message")
	}
	if status != "0" {
		return Answer{}, fmt.Errorf("the answer has grpc-status %q: %s", status, said)
	}
	if len(body) < grpcPrefixLength || body[0] != 0 || int(binary.BigEndian.Uint32(body[1:])) != len(body)-grpcPrefixLength {
		return Answer{}, errors.New("the answer is not one message of gRPC, not compressed")
	}
	var m authv3.CheckResponse
	if err := proto.Unmarshal(body[grpcPrefixLength:], &m); err != nil {
		return Answer{}, fmt.Errorf("the answer cannot be read: %w", err)
	}
	return read(&m)
}

func readAll(b message.Body) ([]byte, message.Fields, error) {
	if b == nil {
		return nil, nil, nil
	}
	defer b.Close()
	var out []byte
	for {
		p, err := b.Next()
		if err == io.EOF {
			return out, b.Trailers().Clone(), nil
		} else if err != nil {
			return nil, nil, fmt.Errorf("the answer broke off: %w", err)
		}
		if len(out)+len(p) > maxAnswer {
			return nil, nil, fmt.Errorf("the answer has more than %d bytes", maxAnswer)
		}
		out = append(out, p...)
	}
}

func read(m *authv3.CheckResponse) (Answer, error) {
	if m.GetStatus().GetCode() != 0 {
		return readDenied(m.GetDeniedResponse())
	}
	out := Answer{Allowed: true}
	ok := m.GetOkResponse()
	if len(ok.GetQueryParametersToSet())+len(ok.GetQueryParametersToRemove()) > 0 {
		return Answer{}, errors.New("the answer wants to change the query, which is not supported")
	}
	for _, h := range ok.GetHeaders() {
		if err := out.ToBackend.option(h, Set); err != nil {
			return Answer{}, err
		}
	}
	for _, name := range ok.GetHeadersToRemove() {
		_ = out.ToBackend.add(name, "", Remove) // what cannot be removed is not there, or is not in a header
	}
	for _, h := range ok.GetResponseHeadersToAdd() {
		if err := out.ToClient.option(h, Append); err != nil {
			return Answer{}, err
		}
	}
	return out, nil
}

// actions are those that answers name; the first is that of answers that name none.
var actions = map[corev3.HeaderValueOption_HeaderAppendAction]Action{
	corev3.HeaderValueOption_ADD_IF_ABSENT: IfAbsent, corev3.HeaderValueOption_OVERWRITE_IF_EXISTS: IfPresent,
	corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD: Set,
}

// option notes a change as gRPC has it; otherwise is what is done where it does not say.
func (e *Edits) option(h *corev3.HeaderValueOption, otherwise Action) error {
	action, named := actions[h.GetAppendAction()]
	//lint:ignore SA1019 servers still say it in this older form
	appends := h.GetAppend()
	switch {
	case appends.GetValue():
		action = Append
	case appends != nil:
		action = Set
	case !named:
		action = otherwise
	}
	return e.add(h.GetHeader().GetKey(), value(h.GetHeader()), action)
}

func value(h *corev3.HeaderValue) string {
	if h.GetValue() == "" {
		return string(h.GetRawValue())
	}
	return h.GetValue()
}

// defaultDenied is the status of a denial that names none. Envoy's.
const defaultDenied = 403

func readDenied(d *authv3.DeniedHttpResponse) (Answer, error) {
	out := Answer{Status: int(d.GetStatus().GetCode()), Body: []byte(d.GetBody())}
	if out.Status == 0 {
		out.Status = defaultDenied
	}
	var edits Edits
	for _, h := range d.GetHeaders() {
		if name := strings.ToLower(h.GetHeader().GetKey()); name == "content-length" || message.Hop(name) {
			continue // it says nothing to clients
		}
		if err := edits.option(h, Append); err != nil {
			return Answer{}, err
		}
	}
	edits.Apply(&out.Header)
	return out, out.valid()
}

// valid tells whether a denial can be an answer to the client.
func (a *Answer) valid() error {
	if a.Status < 200 || a.Status > 599 {
		return fmt.Errorf("the answer denies with status %d", a.Status)
	}
	return nil
}

func (c *Config) readHTTP(resp *message.Response, body []byte) (Answer, error) {
	switch {
	case resp.Status >= 500:
		return Answer{}, fmt.Errorf("the answer has status %d", resp.Status)
	case resp.Status != 200:
		out := Answer{Status: resp.Status, Body: body}
		for _, f := range resp.Header {
			if f.Name != "content-length" && !message.Hop(f.Name) && (c.HTTP.ToDenied == nil || deniedByHTTP(f.Name) || c.HTTP.ToDenied.has(f.Name)) {
				out.Header = append(out.Header, f)
			}
		}
		return out, out.valid()
	}
	out := Answer{Allowed: true}
	for names := range strings.SplitSeq(joined(resp.Header, fieldRemove), ",") {
		_ = out.ToBackend.add(strings.TrimSpace(names), "", Remove) // what cannot be removed is not there, or is not in a header
	}
	seen := map[string]bool{}
	for _, f := range resp.Header {
		if f.Name == fieldRemove || f.Name == "content-length" || message.Hop(f.Name) {
			continue
		}
		action := Set
		if seen[f.Name] {
			action = Append
		}
		seen[f.Name] = true
		if c.HTTP.ToBackend.has(f.Name) {
			if err := out.ToBackend.add(f.Name, f.Value, action); err != nil {
				return Answer{}, err
			}
		}
		if c.HTTP.ToClient.has(f.Name) {
			if err := out.ToClient.add(f.Name, f.Value, action); err != nil {
				return Answer{}, err
			}
		}
	}
	return out, nil
}

// deniedByHTTP tells whether a field of a denial reaches the client whatever the settings say.
func deniedByHTTP(name string) bool { return name == "location" || name == "www-authenticate" }
