package jwt_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"

	"github.com/ambit-mesh/ambit/mesh/jwks"
	"github.com/ambit-mesh/ambit/waypoint/jwt"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

var now = time.Unix(1_800_000_000, 0)

// issuer signs tokens.
type issuer struct {
	key    *ecdsa.PrivateKey
	signer jose.Signer
	set    *jwks.Set
}

func newIssuer(t testing.TB, kid string) *issuer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: kid}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: kid}}})
	if err != nil {
		t.Fatal(err)
	}
	set, problems, err := jwks.Parse(text)
	if err != nil || problems != nil {
		t.Fatal(problems, err)
	}
	return &issuer{key, signer, set}
}

func (i *issuer) sign(t testing.TB, claims string) string {
	t.Helper()
	s, err := i.signer.Sign([]byte(claims))
	if err != nil {
		t.Fatal(err)
	}
	text, err := s.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// authenticator is one with a cache.
type authenticator struct {
	*jwt.Authenticator
	known *jwt.Cache
}

func (a authenticator) Authenticate(r *message.Request, at time.Time) (jwt.Claims, *jwt.Failure) {
	return a.Authenticator.Authenticate(r, a.known, at)
}

// optional is what Istio asks for: a token of one of the providers, if there is one.
func optional(providers ...*jwt.Provider) authenticator {
	var out jwt.Any
	var all jwt.All
	for i, p := range providers {
		p.Fingerprint[0], p.Skew = byte(i)+1, time.Minute
		out, all = append(out, jwt.By(i)), append(all, jwt.Any{jwt.By(i), jwt.Missing{i}})
	}
	return authenticator{jwt.New(jwt.Config{Providers: providers, Require: append(out, all), Preflight: true}), jwt.NewCache(0)}
}

func get(fields ...string) *message.Request {
	r := &message.Request{Method: "GET", Scheme: "http", Authority: "web", Path: "/"}
	for _, f := range fields {
		name, value, _ := strings.Cut(f, ": ")
		r.Header.Add(name, value)
	}
	return r
}

func enc(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

func TestVerdicts(t *testing.T) {
	one, other := newIssuer(t, "1"), newIssuer(t, "1")
	a := optional(&jwt.Provider{Issuer: "https://one", Audiences: []string{"https://shop.example/"}, Keys: one.set})
	claims := func(more string) string {
		return fmt.Sprintf(`{"iss":"https://one","aud":["x","shop.example"]%s}`, more)
	}
	at := func(d time.Duration) int64 { return now.Add(d).Unix() }
	good := one.sign(t, claims(""))
	parts := strings.Split(good, ".")
	for name, tc := range map[string]struct {
		token string
		want  *jwt.Failure
	}{
		"good":               {good, nil},
		"in its time":        {one.sign(t, claims(fmt.Sprintf(`,"exp":%d,"nbf":%d`, at(time.Hour), at(-time.Hour)))), nil},
		"within the skew":    {one.sign(t, claims(fmt.Sprintf(`,"exp":%d,"nbf":%d.5`, at(-30*time.Second), at(30*time.Second)))), nil},
		"expired":            {one.sign(t, claims(fmt.Sprintf(`,"exp":%d`, at(-2*time.Minute)))), jwt.ErrExpired},
		"not yet":            {one.sign(t, claims(fmt.Sprintf(`,"nbf":%d`, at(2*time.Minute)))), jwt.ErrNotYet},
		"for ever":           {one.sign(t, claims(`,"exp":1e300`)), nil},
		"another issuer":     {one.sign(t, `{"iss":"https://two","aud":"shop.example"}`), jwt.ErrIssuer},
		"no issuer":          {one.sign(t, `{"aud":"shop.example"}`), jwt.ErrIssuer},
		"another audience":   {one.sign(t, `{"iss":"https://one","aud":"y"}`), jwt.ErrAudience},
		"no audience":        {one.sign(t, `{"iss":"https://one"}`), jwt.ErrAudience},
		"another key":        {other.sign(t, claims("")), jwt.ErrSignature},
		"another kid":        {newIssuer(t, "2").sign(t, claims("")), jwt.ErrNoKey},
		"no signature":       {parts[0] + "." + parts[1] + ".", jwt.ErrSignature},
		"another payload":    {parts[0] + "." + enc(claims(`,"sub":"root"`)) + "." + parts[2], jwt.ErrSignature},
		"none":               {enc(`{"alg":"none"}`) + "." + parts[1] + ".", jwt.ErrAlg},
		"None":               {enc(`{"alg":"None"}`) + "." + parts[1] + "." + parts[2], jwt.ErrAlg},
		"hmac":               {enc(`{"alg":"HS256","kid":"1"}`) + "." + parts[1] + "." + parts[2], jwt.ErrAlg},
		"no alg":             {enc(`{}`) + "." + parts[1] + "." + parts[2], jwt.ErrNoAlg},
		"alg is a number":    {enc(`{"alg":1}`) + "." + parts[1] + "." + parts[2], jwt.ErrNoAlg},
		"kid is a number":    {enc(`{"alg":"ES256","kid":1}`) + "." + parts[1] + "." + parts[2], jwt.ErrKid},
		"crit":               {enc(`{"alg":"ES256","crit":["b64"],"b64":false}`) + "." + parts[1] + "." + parts[2], jwt.ErrCritical},
		"a key of its own":   {enc(`{"alg":"ES256","kid":"2","jwk":{"kty":"EC"}}`) + "." + parts[1] + "." + parts[2], jwt.ErrNoKey},
		"two parts":          {parts[0] + "." + parts[1], jwt.ErrFormat},
		"four parts":         {good + ".", jwt.ErrFormat},
		"nothing":            {"..", jwt.ErrHeaderJSON},
		"header not base64":  {"!." + parts[1] + "." + parts[2], jwt.ErrHeaderBase64},
		"header not JSON":    {enc(`{"alg":"ES256"`) + "." + parts[1] + "." + parts[2], jwt.ErrHeaderJSON},
		"header and more":    {enc(`{"alg":"ES256"}{}`) + "." + parts[1] + "." + parts[2], jwt.ErrHeaderJSON},
		"payload not base64": {parts[0] + ".*." + parts[2], jwt.ErrBase64},
		"payload not JSON":   {parts[0] + "." + enc("[1]") + "." + parts[2], jwt.ErrJSON},
		"payload null":       {parts[0] + "." + enc("null") + "." + parts[2], jwt.ErrJSON},
		"iss twice":          {one.sign(t, `{"iss":"https://two","iss":"https://one","aud":"shop.example"}`), jwt.ErrJSON},
		"twice inside":       {one.sign(t, claims(`,"a":[{"b":1,"b":1}]`)), jwt.ErrJSON},
		"deep":               {one.sign(t, claims(`,"a":`+strings.Repeat("[", 99)+strings.Repeat("]", 99))), jwt.ErrJSON},
		"no end":             {parts[0] + "." + enc(`{"iss":"https://one"`) + "." + parts[2], jwt.ErrJSON},
		"iss is a number":    {one.sign(t, `{"iss":1}`), jwt.ErrIss},
		"sub is a list":      {one.sign(t, `{"iss":"https://one","sub":[]}`), jwt.ErrSub},
		"aud is a number":    {one.sign(t, `{"aud":1}`), jwt.ErrAud},
		"aud has a number":   {one.sign(t, `{"aud":["a",1]}`), jwt.ErrAud},
		"exp is text":        {one.sign(t, claims(`,"exp":"never"`)), jwt.ErrExp},
		"exp is negative":    {one.sign(t, claims(`,"exp":-1`)), jwt.ErrExp},
		"nbf is text":        {one.sign(t, claims(`,"nbf":"1"`)), jwt.ErrNbf},
		"long":               {one.sign(t, claims(`,"x":"`+strings.Repeat("x", 11<<10)+`"`)), nil},
		"too long":           {one.sign(t, claims(`,"x":"`+strings.Repeat("x", jwt.MaxToken)+`"`)), jwt.ErrTooLong},
	} {
		t.Run(name, func(t *testing.T) {
			for range 2 { // the second time by what is kept of the first
				claims, failure := a.Authenticate(get("authorization: Bearer "+tc.token), now)
				if failure != tc.want || failure == nil != (claims["iss"] == "https://one") {
					t.Errorf("%v, %v, want %v", claims, failure, tc.want)
				}
			}
		})
	}
}

func TestPlaces(t *testing.T) {
	one := newIssuer(t, "")
	good, bad := one.sign(t, `{"iss":"one","sub":"me"}`), "a.b.c"
	standard := jwt.Provider{Issuer: "one", Keys: one.set}
	own := jwt.Provider{Issuer: "one", Keys: one.set, Headers: []jwt.Header{{"x-jwt", "JWT "}, {"x-bare", ""}}, Params: []string{"t"}, Cookies: []string{"c"}}
	forward := own
	forward.Forward = true
	for name, tc := range map[string]struct {
		provider jwt.Provider
		path     string
		header   []string
		want     *jwt.Failure
		claims   bool
		// after are the path and the header that the backend gets.
		after []string
	}{
		"nothing":              {provider: standard, path: "/a?b", header: []string{"x: y"}, after: []string{"/a?b", "x: y"}},
		"bearer":               {provider: standard, path: "/", header: []string{"authorization: Bearer " + good, "x: y"}, claims: true, after: []string{"/", "x: y"}},
		"bearer in lower case": {provider: standard, path: "/", header: []string{"authorization: bearer  " + good}, claims: true, after: []string{"/"}},
		"a bad one so":         {provider: standard, path: "/", header: []string{"authorization: BEARER x"}, want: jwt.ErrFormat},
		"basic":                {provider: standard, path: "/", header: []string{"authorization: Basic eDp5"}, after: []string{"/", "authorization: Basic eDp5"}},
		"parameter":            {provider: standard, path: "/?a=1&access_token=" + good + "&b=%2F", claims: true, after: []string{"/?a=1&b=%2F"}},
		"escaped parameter":    {provider: standard, path: "/?access%5Ftoken=" + strings.ReplaceAll(good, ".", "%2E"), claims: true, after: []string{"/"}},
		"bad second":           {provider: standard, path: "/?access_token=" + bad, header: []string{"authorization: Bearer " + good}, want: jwt.ErrHeaderBase64},
		"bad second field":     {provider: standard, path: "/", header: []string{"authorization: Bearer " + good, "authorization: Bearer a"}, want: jwt.ErrFormat},
		"bad second param":     {provider: standard, path: "/?access_token=" + good + "&access_token=", want: jwt.ErrFormat},
		"not its place":        {provider: own, path: "/?access_token=" + bad, header: []string{"authorization: Bearer " + bad}, after: []string{"/?access_token=a.b.c", "authorization: Bearer a.b.c"}},
		"own field":            {provider: own, path: "/", header: []string{"x-jwt: JWT " + good}, claims: true, after: []string{"/"}},
		"own field otherwise":  {provider: own, path: "/", header: []string{"x-jwt: " + good}, after: []string{"/", "x-jwt: " + good}},
		"bare field":           {provider: own, path: "/", header: []string{"x-bare: " + good}, claims: true, after: []string{"/"}},
		"own parameter":        {provider: own, path: "/?t=" + good, claims: true, after: []string{"/"}},
		"cookie":               {provider: own, path: "/", header: []string{"cookie: a=b; c=" + good + "; d", "cookie: e=f"}, claims: true, after: []string{"/", "cookie: a=b; d", "cookie: e=f"}},
		"quoted cookie":        {provider: own, path: "/", header: []string{`cookie: c="` + good + `"`}, claims: true, after: []string{"/"}},
		"bad cookie":           {provider: own, path: "/", header: []string{"cookie: c=" + bad}, want: jwt.ErrHeaderBase64},
		"forward":              {provider: forward, path: "/?t=" + good, header: []string{"x-bare: " + good, "cookie: c=" + good}, claims: true, after: []string{"/?t=" + good, "x-bare: " + good, "cookie: c=" + good}},
		"too many":             {provider: forward, path: "/?t=" + good + "&t=" + good + "&t=" + good, header: []string{"x-bare: " + good, "cookie: c=" + good}, want: jwt.ErrTooMany},
	} {
		t.Run(name, func(t *testing.T) {
			r := get(tc.header...)
			r.Path = tc.path
			claims, failure := optional(&tc.provider).Authenticate(r, now)
			if failure != tc.want || tc.claims != (claims["sub"] == "me") {
				t.Errorf("%v, %v, want %v", claims, failure, tc.want)
			}
			if failure != nil {
				return
			}
			after := []string{r.Path}
			for _, f := range r.Header {
				after = append(after, f.Name+": "+f.Value)
			}
			if diff := cmp.Diff(tc.after, after); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestTold: backends are told what a token claims, and nothing that a client says itself.
func TestTold(t *testing.T) {
	one := newIssuer(t, "")
	p := &jwt.Provider{
		Issuer: "one", Keys: one.set, PayloadHeader: "x-payload",
		ClaimHeaders: []jwt.ClaimHeader{
			{"sub", "x-sub"}, {"a.b", "x-a-b"}, {"n", "x-n"}, {"yes", "x-yes"}, {"list", "x-list"}, {"evil", "x-evil"}, {"https://a.b/c.d", "x-url"}, {"none", "x-none"},
		},
	}
	a := optional(p)
	payload := `{"iss":"one","sub":"me","a":{"b":"c"},"n":12345678901234567,"yes":true,"list":["x"],"evil":"a\r\nb: c","https://a.b/c":{"d":"e"}}`
	spoofed := []string{"x-payload: p", "x-sub: root", "x-none: n", "x-list: l", "x-evil: e", "x: y"}
	r := get(append(spoofed, "authorization: Bearer "+one.sign(t, payload))...)
	if _, failure := a.Authenticate(r, now); failure != nil {
		t.Fatal(failure)
	}
	want := map[string]string{
		"x": "y", "x-payload": enc(payload), "x-sub": "me", "x-a-b": "c", "x-n": "12345678901234567", "x-yes": "true", "x-url": "e",
	}
	got := map[string]string{}
	for _, f := range r.Header {
		got[f.Name] += f.Value
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	r = get(spoofed...)
	if claims, failure := a.Authenticate(r, now); claims != nil || failure != nil || len(r.Header) != 1 {
		t.Errorf("without a token: %v, %v, %v", claims, failure, r.Header)
	}
	r = get(append(spoofed, "origin: http://a", "access-control-request-method: PUT", "authorization: Bearer x")...)
	r.Method = "OPTIONS"
	if claims, failure := a.Authenticate(r, now); claims != nil || failure != nil || r.Header.Has("x-sub") {
		t.Errorf("preflight: %v, %v, %v", claims, failure, r.Header)
	}
	p.Padded = true
	r = get("authorization: Bearer " + one.sign(t, `{"iss":"one" }`))
	if _, failure := a.Authenticate(r, now); failure != nil || r.Header.Get("x-payload") != enc(`{"iss":"one" }`)+"==" && len(r.Header.Get("x-payload"))%4 != 0 {
		t.Errorf("%v, %v", failure, r.Header)
	}
}

func TestLists(t *testing.T) {
	one := newIssuer(t, "")
	a := optional(&jwt.Provider{Issuer: "one", Keys: one.set, Lists: []string{"scope", "a.b", "none", "aud"}})
	token := one.sign(t, `{"iss":"one","scope":"read  write","a":{"b":"x y","c":"x y"},"aud":["a b"]}`)
	want := jwt.Claims{
		"iss": "one", "scope": []any{"read", "write"}, "a": map[string]any{"b": []any{"x", "y"}, "c": "x y"}, "aud": []any{"a b"},
	}
	for range 2 { // what is kept is not changed
		claims, failure := a.Authenticate(get("authorization: Bearer "+token), now)
		if diff := cmp.Diff(want, claims); failure != nil || diff != "" {
			t.Error(failure, diff)
		}
	}
}

func TestSeveralProviders(t *testing.T) {
	one, two := newIssuer(t, "1"), newIssuer(t, "2")
	a := optional(&jwt.Provider{Issuer: "one", Keys: one.set}, &jwt.Provider{Issuer: "two", Keys: two.set},
		&jwt.Provider{Issuer: "three", Keys: two.set, Headers: []jwt.Header{{"x-three", ""}}})
	first, second, third := one.sign(t, `{"iss":"one"}`), two.sign(t, `{"iss":"two"}`), two.sign(t, `{"iss":"three"}`)
	for name, tc := range map[string]struct {
		header []string
		iss    any
		want   *jwt.Failure
	}{
		"none":             {nil, nil, nil},
		"first":            {[]string{"authorization: Bearer " + first}, "one", nil},
		"second":           {[]string{"authorization: Bearer " + second}, "two", nil},
		"third":            {[]string{"x-three: " + third}, "three", nil},
		"third, misplaced": {[]string{"authorization: Bearer " + third}, nil, jwt.ErrIssuer},
		"unknown":          {[]string{"authorization: Bearer " + one.sign(t, `{"iss":"four"}`)}, nil, jwt.ErrIssuer},
		"false second":     {[]string{"authorization: Bearer " + one.sign(t, `{"iss":"two"}`)}, nil, jwt.ErrNoKey},
		"bad third":        {[]string{"x-three: " + second}, nil, jwt.ErrIssuer},
		// One that is good is enough: that is how Istio lays it.
		"first, bad third": {[]string{"authorization: Bearer " + first, "x-three: x"}, "one", nil},
	} {
		t.Run(name, func(t *testing.T) {
			for range 2 {
				claims, failure := a.Authenticate(get(tc.header...), now)
				if failure != tc.want || claims["iss"] != tc.iss {
					t.Errorf("%v, %v, want %v", claims, failure, tc.want)
				}
			}
		})
	}
}

// TestCache: what was verified counts until it expires, for the provider that it was verified for; and nothing else is kept.
func TestCache(t *testing.T) {
	one := newIssuer(t, "")
	token := one.sign(t, fmt.Sprintf(`{"iss":"one","exp":%d}`, now.Add(time.Hour).Unix()))
	cache := jwt.NewCache(0)
	with := func(fingerprint byte, set *jwks.Set) authenticator {
		p := &jwt.Provider{Issuer: "one", Keys: set}
		p.Fingerprint[0] = fingerprint
		return authenticator{jwt.New(jwt.Config{Providers: []*jwt.Provider{p}, Require: jwt.By(0)}), cache}
	}
	ask := func(a authenticator, at time.Time) *jwt.Failure {
		_, failure := a.Authenticate(get("authorization: Bearer "+token), at)
		return failure
	}
	for _, step := range []struct {
		a    authenticator
		at   time.Time
		want *jwt.Failure
	}{
		{with(1, nil), now, jwt.ErrNoKeys},
		{with(1, one.set), now, nil},
		{with(1, nil), now, nil}, // known
		{with(2, nil), now, jwt.ErrNoKeys},
		{with(1, one.set), now.Add(time.Hour + time.Second), jwt.ErrExpired},
	} {
		if failure := ask(step.a, step.at); failure != step.want {
			t.Errorf("%v, want %v", failure, step.want)
		}
	}
	// Others push it out.
	small := jwt.NewCache(4 * len(token))
	cache = small
	ask(with(1, one.set), now)
	if failure := ask(with(1, nil), now); failure != nil {
		t.Error(failure)
	}
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for i := range 20 {
				r := get("authorization: Bearer " + one.sign(t, fmt.Sprintf(`{"iss":"one","n":%d}`, i)))
				if _, failure := with(1, one.set).Authenticate(r, now); failure != nil {
					t.Error(failure)
				}
			}
		})
	}
	wg.Wait()
	if failure := ask(with(1, nil), now); failure != jwt.ErrNoKeys {
		t.Errorf("it is kept still: %v", failure)
	}
}

func TestChallenge(t *testing.T) {
	if got := jwt.ErrMissing.Challenge("http://a/b"); got != `Bearer realm="http://a/b"` {
		t.Error(got)
	}
	if got := jwt.ErrExpired.Challenge("http://a/b"); got != `Bearer realm="http://a/b", error="invalid_token"` {
		t.Error(got)
	}
}

// FuzzAuthenticate: nothing that a client sends is taken for a token that an issuer has signed, or breaks anything.
func FuzzAuthenticate(f *testing.F) {
	one := newIssuer(f, "1")
	a := optional(&jwt.Provider{Issuer: "one", Keys: one.set, Cookies: []string{"c"}, Params: []string{"t"}, Headers: []jwt.Header{{"x", "p "}}},
		&jwt.Provider{Keys: one.set, Lists: []string{"a.b"}, ClaimHeaders: []jwt.ClaimHeader{{"a.b", "y"}}})
	f.Add("a.b.c", "/?t=1&t", "c=1;c=\"")
	f.Add(newIssuer(f, "1").sign(f, `{"iss":"one","a":{"b":"c"}}`), "/?access_token=..", ";=;")
	f.Add(enc(`{"alg":"ES256","kid":"1"}`)+"."+enc(`{"iss":"one","exp":1e400}`)+".AAAA", "?", "")
	f.Fuzz(func(t *testing.T, token, path, cookie string) {
		r := get("x: p "+token, "cookie: "+cookie, "authorization: Bearer "+token)
		r.Path = path
		if claims, _ := a.Authenticate(r, now); claims != nil {
			t.Fatalf("claims %v", claims)
		}
	})
}

func BenchmarkAuthenticate(b *testing.B) {
	one := newIssuer(b, "1")
	a := optional(&jwt.Provider{Issuer: "one", Keys: one.set, Forward: true, Lists: []string{"scope", "permission"}})
	r := get("authorization: Bearer " + one.sign(b, `{"iss":"one","sub":"me","scope":"a b","x":"`+strings.Repeat("x", 700)+`"}`))
	b.ReportAllocs()
	for b.Loop() {
		if _, failure := a.Authenticate(r, now); failure != nil {
			b.Fatal(failure)
		}
	}
}
