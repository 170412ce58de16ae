package authn

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/durationpb"
	securityv1 "istio.io/api/security/v1beta1"

	"github.com/ambit-mesh/ambit/mesh/authz"
	"github.com/ambit-mesh/ambit/mesh/jwks"
)

// Policy is a RequestAuthentication. It is immutable.
type Policy struct {
	Namespace, Name string
	// Attached: it has targetRefs. Others are nobody's: waypoints take no policies by selector or namespace, and node proxies see no
	// requests.
	Attached bool
	// Targets are what it is attached to.
	Targets []authz.Target
	Rules   []Rule
	// Problems say what of it does not mean what it says, in the order of the text.
	Problems []string

	text []byte
}

// Rule is one issuer's.
type Rule struct {
	// Issuer is what tokens must name; "" for any, which only a rule with a JWKSURI may say.
	Issuer    string
	Audiences []string
	// JWKS are the keys if they are in the rule; else they are to be had at Source.
	JWKS   *jwks.Set
	Source Source
	// Timeout bounds how long to wait for keys.
	Timeout time.Duration
	// Headers, Params and Cookies are where tokens are looked for; see Istio's kind for where if there are none.
	Headers []Header
	Params  []string
	Cookies []string
	// Forward leaves tokens in requests.
	Forward bool
	// PayloadHeader and ClaimHeaders are what backends are told.
	PayloadHeader string
	ClaimHeaders  []ClaimHeader
	// Lists are claims that are lists of words.
	Lists []string
	// Broken: the rule has a fault, so that its tokens are refused.
	Broken bool
}

// Header is a field in which a token may be, after a prefix. Name is in lower case.
type Header struct{ Name, Prefix string }

// ClaimHeader is a field that tells of a claim. Header is in lower case.
type ClaimHeader struct{ Claim, Header string }

// Source is where an issuer publishes its keys: one of the fields, or none.
type Source struct {
	// URI is that of a key set.
	URI string
	// Issuer is the URL of an issuer whose metadata names the key set (OpenID Connect Discovery).
	Issuer string
}

// IsZero reports whether there is none.
func (s Source) IsZero() bool { return s == Source{} }

// String is the address to ask first.
func (s Source) String() string {
	if s.URI != "" || s.IsZero() {
		return s.URI
	}
	return strings.TrimSuffix(s.Issuer, "/") + "/.well-known/openid-configuration"
}

// ReasonNoKeys is the reason of a policy's condition when the keys of an issuer cannot be had.
const ReasonNoKeys = "JwksUnavailable"

// defaultTimeout is how long to wait for keys if a rule does not say. Istio's.
const defaultTimeout = 5 * time.Second

// defaultLists are claims that are lists of words everywhere. Istio's.
var defaultLists = []string{"permission", "scope"}

// Read reads a policy. spec is its decoded JSON.
func Read(namespace, name string, spec any) *Policy {
	p := &Policy{Namespace: namespace, Name: name}
	p.text, _ = json.Marshal(spec) // decoded JSON can be encoded
	fields, ok := spec.(map[string]any)
	if !ok && spec != nil {
		p.problem("spec", errors.New("is not an object"))
		return p
	}
	for _, field := range slices.Sorted(maps.Keys(fields)) {
		switch field {
		case "jwtRules", "selector":
		case "targetRef", "targetRefs":
			if list, is := fields[field].([]any); !is || len(list) > 0 {
				p.Attached = fields[field] != nil || p.Attached
			}
		default:
			p.problem("spec."+field, errors.New("is not known"))
		}
	}
	if p.Attached {
		var problems []authz.Problem
		p.Targets, problems = authz.ReadTargets(fields)
		for _, one := range problems {
			p.problem(one.Where, errors.New(one.What))
		}
		if fields["selector"] != nil {
			p.problem("selector", errors.New("must not be there beside targetRefs: the policy is for what these name"))
		}
	}
	p.readRules(fields["jwtRules"])
	return p
}

// Equal reports whether both were read from the same text.
func (p *Policy) Equal(o *Policy) bool {
	return p.Namespace == o.Namespace && p.Name == o.Name && bytes.Equal(p.text, o.text)
}

// Broken is how many rules have a fault.
func (p *Policy) Broken() int {
	n := 0
	for _, r := range p.Rules {
		if r.Broken {
			n++
		}
	}
	return n
}

func (p *Policy) problem(where string, err error) {
	p.Problems = append(p.Problems, where+": "+err.Error())
}

func (p *Policy) readRules(value any) {
	list, ok := value.([]any)
	if !ok && value != nil {
		p.problem("jwtRules", errors.New("is not a list"))
		p.Rules = []Rule{{Broken: true}} // of any issuer
		return
	}
	for i, v := range list {
		r := reader{where: fmt.Sprintf("jwtRules[%d]", i)}
		rule := r.read(v)
		rule.Broken = r.broken
		p.Rules = append(p.Rules, rule)
		p.Problems = append(p.Problems, r.problems...)
	}
}

// reader reads a rule.
type reader struct {
	where    string
	problems []string
	broken   bool
}

// fault notes what makes the rule one that cannot be meant.
func (r *reader) fault(where, format string, args ...any) {
	r.broken = true
	r.note(where, format, args...)
}

func (r *reader) note(where, format string, args ...any) {
	r.problems = append(r.problems, r.where+where+": "+fmt.Sprintf(format, args...))
}

func (r *reader) read(value any) Rule {
	text, err := json.Marshal(value)
	var in securityv1.JWTRule
	if err == nil {
		err = protojson.Unmarshal(text, &in)
	}
	if err != nil {
		// protojson varies its spaces, so that nobody relies on its words; problems are compared all the same.
		r.fault("", "%s", strings.ReplaceAll(err.Error(), "\u00a0", " "))
		return Rule{Timeout: defaultTimeout}
	}
	out := Rule{
		Issuer: in.GetIssuer(), Audiences: r.full(".audiences", in.GetAudiences()), Params: r.full(".fromParams", in.GetFromParams()),
		Cookies: r.full(".fromCookies", in.GetFromCookies()), Forward: in.GetForwardOriginalToken(), Timeout: r.timeout(in.GetTimeout()),
	}
	out.Lists = slices.Concat(defaultLists, r.full(".spaceDelimitedClaims", in.GetSpaceDelimitedClaims()))
	slices.Sort(out.Lists)
	out.Lists = slices.Compact(out.Lists)
	for i, h := range in.GetFromHeaders() {
		if name := r.header(fmt.Sprintf(".fromHeaders[%d].name", i), h.GetName()); name != "" {
			out.Headers = append(out.Headers, Header{name, h.GetPrefix()})
		}
	}
	r.told(&out, &in)
	r.keys(&out, &in)
	return out
}

func (r *reader) timeout(d *durationpb.Duration) time.Duration {
	if d == nil {
		return defaultTimeout
	}
	if err := d.CheckValid(); err != nil || d.AsDuration() <= 0 {
		r.fault(".timeout", "must be more than 0")
		return defaultTimeout
	}
	return d.AsDuration()
}

// full returns the elements that are not empty, and notes the others.
func (r *reader) full(where string, list []string) (out []string) {
	for i, v := range list {
		if v == "" {
			r.fault(fmt.Sprintf("%s[%d]", where, i), "is empty")
		} else {
			out = append(out, v)
		}
	}
	return out
}

// header returns the name of a field in lower case, "" if it is none.
func (r *reader) header(where, name string) string {
	lower := strings.ToLower(name)
	switch {
	case !httpguts.ValidHeaderFieldName(name):
		r.fault(where, "%q is no name of a header", name)
		return ""
	case slices.Contains(unfit, lower):
		r.fault(where, "%q is about the message itself", name)
		return ""
	}
	return lower
}

// unfit are fields that have another meaning.
var unfit = []string{
	"host", "connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "te", "trailer", "content-length", "http2-settings",
}

// told reads what backends are told.
func (r *reader) told(out *Rule, in *securityv1.JWTRule) {
	used := map[string]bool{}
	if name := in.GetOutputPayloadToHeader(); name != "" {
		out.PayloadHeader = r.header(".outputPayloadToHeader", name)
		used[out.PayloadHeader] = true
	}
	for i, c := range in.GetOutputClaimToHeaders() {
		where := fmt.Sprintf(".outputClaimToHeaders[%d]", i)
		name := r.header(where+".header", c.GetHeader())
		switch {
		case c.GetClaim() == "":
			r.fault(where+".claim", "is empty")
		case name == "":
		case used[name]:
			r.fault(where+".header", "%q tells of something else already", c.GetHeader())
		default:
			used[name] = true
			out.ClaimHeaders = append(out.ClaimHeaders, ClaimHeader{c.GetClaim(), name})
		}
	}
}

// keys reads where the keys are.
func (r *reader) keys(out *Rule, in *securityv1.JWTRule) {
	if in.GetIssuer() == "" && in.GetJwksUri() == "" {
		r.fault(".issuer", "is empty")
	}
	switch {
	case in.GetJwks() != "":
		set, problems, err := jwks.Parse([]byte(in.GetJwks()))
		if err != nil {
			r.fault(".jwks", "%v", err)
			return
		}
		for _, problem := range problems {
			r.note(".jwks", "%s", problem)
		}
		if out.JWKS = set; set.Len() == 0 {
			r.fault(".jwks", "has no key that can be used")
		}
	case in.GetJwksUri() != "":
		if err := checkURL(in.GetJwksUri()); err != nil {
			r.fault(".jwksUri", "%v", err)
			return
		}
		out.Source = Source{URI: in.GetJwksUri()}
	case in.GetIssuer() != "":
		if err := checkURL(in.GetIssuer()); err != nil {
			r.fault(".jwksUri", "is empty, and the issuer, which then tells where its keys are, %v", err)
			return
		}
		out.Source = Source{Issuer: in.GetIssuer()}
	}
}

func checkURL(text string) error {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil {
		return fmt.Errorf("%q is no URL that begins with http:// or https:// and names a host", text)
	}
	return nil
}
