package keysets_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/istiod-lite/cluster/clustertest"
	"github.com/ambit-mesh/ambit/istiod-lite/keysets"
	"github.com/ambit-mesh/ambit/mesh/authn"
	"github.com/ambit-mesh/ambit/mesh/jwks"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what must happen.
const patience = 30 * time.Second

func keys(t testing.TB, id string) string {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	out, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: k.Public(), KeyID: id}}})
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// issuer publishes keys.
type issuer struct {
	*httptest.Server
	keys   atomic.Pointer[string] // nil: it fails
	asked  atomic.Int64
	hangs  chan struct{} // until it is closed, for /hang
	header atomic.Pointer[http.Header]
}

func newIssuer(t *testing.T) *issuer {
	i := &issuer{hangs: make(chan struct{})}
	mux := http.NewServeMux()
	mux.HandleFunc("/keys", func(w http.ResponseWriter, r *http.Request) {
		i.asked.Add(1)
		i.header.Store(&r.Header)
		if text := i.keys.Load(); text != nil {
			_, _ = w.Write([]byte(*text))
			return
		}
		http.Error(w, "no", http.StatusServiceUnavailable)
	})
	mux.HandleFunc("/.well-known/openid-configuration", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, `{"issuer":"x","jwks_uri":"%s/keys"}`, i.URL)
	})
	mux.HandleFunc("/file", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "file:///etc/passwd", http.StatusFound)
	})
	mux.HandleFunc("/metadata", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://169.254.169.254/latest", http.StatusFound)
	})
	mux.HandleFunc("/huge", func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write([]byte(strings.Repeat(" ", jwks.MaxText+1)))
	})
	mux.HandleFunc("/hang", func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-i.hangs:
		case <-r.Context().Done():
		}
	})
	i.Server = httptest.NewServer(mux)
	t.Cleanup(i.Close)
	return i
}

func (i *issuer) publish(text string) { i.keys.Store(&text) }

// store is a running Store.
type store struct {
	*keysets.Store
	events chan cluster.Event
}

func start(t *testing.T, cfg keysets.Config) *store {
	t.Helper()
	s := &store{events: make(chan cluster.Event, 100)}
	cfg.Sink, cfg.Registerer, cfg.Log = func(e cluster.Event) { s.events <- e }, prometheus.NewRegistry(), slog.New(slog.DiscardHandler)
	s.Store = keysets.New(cfg)
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { s.Run(ctx) })
	t.Cleanup(func() { stop(); wg.Wait() })
	return s
}

func (s *store) next(t *testing.T) cluster.Event {
	t.Helper()
	select {
	case e := <-s.events:
		return e
	case <-time.After(patience):
		t.Fatal("no event")
		return cluster.Event{}
	}
}

// await returns the key set of the next event that has one which fits.
func (s *store) await(t *testing.T, fits func(*cluster.KeySet) bool) *cluster.KeySet {
	t.Helper()
	for {
		e := s.next(t)
		for _, o := range append(e.Objects, e.Object) {
			if set, ok := o.(*cluster.KeySet); ok && fits(set) {
				return set
			}
		}
	}
}

func policy(t testing.TB, name, rules string) cluster.Object {
	t.Helper()
	objects, err := clustertest.Parse([]byte(fmt.Sprintf(`
kind: RequestAuthentication
metadata: {name: %s, namespace: shop}
spec: {targetRefs: [{kind: Service, group: "", name: web}], jwtRules: [%s]}
`, name, rules)))
	if err != nil {
		t.Fatal(err)
	}
	return objects[0]
}

func (s *store) list(objects ...cluster.Object) {
	s.Observe(cluster.Event{Kind: cluster.KindRequestAuthentication, Op: cluster.Replace, Objects: objects})
}

func (s *store) upsert(o cluster.Object) {
	s.Observe(cluster.Event{Kind: cluster.KindRequestAuthentication, Op: cluster.Upsert, Key: o.ObjectKey(), Object: o})
}

// TestRotation: keys are there at the start, new ones come, the last good stay while the issuer is away.
func TestRotation(t *testing.T) {
	i := newIssuer(t)
	i.publish(keys(t, "1"))
	s := start(t, keysets.Config{Refresh: 5 * time.Millisecond, Retry: time.Millisecond})
	s.list(policy(t, "a", `{issuer: x, jwksUri: "`+i.URL+`/keys"}`), policy(t, "b", `{issuer: y, jwksUri: "`+i.URL+`/keys", timeout: 20s}`))
	first := s.next(t)
	if first.Op != cluster.Replace || len(first.Objects) != 1 {
		t.Fatalf("%+v", first)
	}
	set := first.Objects[0].(*cluster.KeySet)
	if set.Source != (authn.Source{URI: i.URL + "/keys"}) || set.Fault != "" || !strings.Contains(set.Set.String(), `"kid":"1"`) {
		t.Fatalf("%+v", set)
	}
	i.publish(keys(t, "2"))
	second := s.await(t, func(k *cluster.KeySet) bool { return strings.Contains(k.Set.String(), `"kid":"2"`) })
	i.keys.Store(nil)
	away := s.await(t, func(k *cluster.KeySet) bool { return k.Fault != "" })
	if away.Set.String() != second.Set.String() || away.Fault != "GET "+i.URL+"/keys: status 503" {
		t.Errorf("%+v", away)
	}
	i.publish(keys(t, "3"))
	s.await(t, func(k *cluster.KeySet) bool { return k.Fault == "" && strings.Contains(k.Set.String(), `"kid":"3"`) })
	if h := *i.header.Load(); h.Get("Authorization") != "" || h.Get("User-Agent") != "istiod-lite" {
		t.Error(h)
	}
	// Nobody asks for it any more when both policies have gone.
	s.Observe(cluster.Event{Kind: cluster.KindRequestAuthentication, Op: cluster.Delete, Key: cluster.Key{Namespace: "shop", Name: "a"}})
	s.upsert(policy(t, "b", `{issuer: y}`))
	for e := s.next(t); e.Op != cluster.Delete; e = s.next(t) {
	}
	asked := i.asked.Load()
	s.upsert(policy(t, "c", `{issuer: "`+i.URL+`"}`))
	s.await(t, func(k *cluster.KeySet) bool { return k.Source.Issuer == i.URL && k.Set.Len() == 1 })
	if again := i.asked.Load(); again <= asked {
		t.Error("nobody has asked")
	}
}

// TestKept: keys do not count for ever.
func TestKept(t *testing.T) {
	i := newIssuer(t)
	i.publish(keys(t, "1"))
	s := start(t, keysets.Config{Refresh: 5 * time.Millisecond, Retry: time.Millisecond, Keep: 50 * time.Millisecond})
	s.list(policy(t, "a", `{issuer: x, jwksUri: "`+i.URL+`/keys"}`))
	s.await(t, func(k *cluster.KeySet) bool { return k.Set.Len() == 1 })
	i.keys.Store(nil)
	s.await(t, func(k *cluster.KeySet) bool { return k.Fault != "" && k.Set == nil })
}

// TestFaults: what cannot be had is said in words that stay the same, and what must not be asked is not.
func TestFaults(t *testing.T) {
	i := newIssuer(t)
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	for path, want := range map[string]string{
		i.URL + "/none":     "GET " + i.URL + "/none: status 404",
		i.URL + "/huge":     "GET " + i.URL + "/huge: more than 262144 bytes",
		i.URL + "/file":     "GET file:///etc/passwd: ",
		i.URL + "/metadata": "GET http://169.254.169.254/latest: dial: the address is link-local",
		"http://[::]:1/":    "GET http://[::]:1/: dial: the address is link-local",
		gone.URL:            "GET " + gone.URL + ": dial: connection refused",
		i.URL + "/hang":     "GET " + i.URL + "/hang: no answer in time",
	} {
		t.Run(path, func(t *testing.T) {
			s := start(t, keysets.Config{})
			timeout := "20s"
			if strings.HasSuffix(path, "/hang") {
				timeout = "0.05s"
			}
			s.list(policy(t, "a", `{issuer: x, jwksUri: "`+path+`", timeout: `+timeout+`}`))
			got := s.await(t, func(*cluster.KeySet) bool { return true })
			if got.Set != nil || !strings.HasPrefix(got.Fault, want) {
				t.Errorf("%q, want %s", got.Fault, want)
			}
		})
	}
	for text, want := range map[string]string{
		`<html>`: `/keys: the key set is no JSON object with a list "keys"`, `{"keys":[]}`: "/keys: the key set has no key that can be used",
		`{"keys":[{"kty":"oct","k":"eA"}]}`: "/keys: no key of the set can be used: keys[0]: is a symmetric key: whoever could read the set could sign tokens",
	} {
		i.publish(text)
		s := start(t, keysets.Config{})
		s.list(policy(t, "a", `{issuer: x, jwksUri: "`+i.URL+`/keys"}`))
		if got := s.await(t, func(*cluster.KeySet) bool { return true }); got.Set != nil || got.Fault != "GET "+i.URL+want {
			t.Errorf("%q, want %s", got.Fault, want)
		}
	}
}

// TestStart: the start waits for issuers, but not long; and not at all where nobody asks for keys.
func TestStart(t *testing.T) {
	i := newIssuer(t)
	defer close(i.hangs)
	s := start(t, keysets.Config{Grace: 10 * time.Millisecond})
	s.list(policy(t, "a", `{issuer: x, jwksUri: "`+i.URL+`/hang", timeout: 1000s}`))
	if e := s.next(t); e.Op != cluster.Replace || len(e.Objects) != 0 {
		t.Errorf("%+v", e)
	}
	s = start(t, keysets.Config{Grace: time.Hour})
	s.Observe(cluster.Event{Kind: cluster.KindRequestAuthentication, Op: cluster.Absent})
	if e := s.next(t); e.Op != cluster.Replace || len(e.Objects) != 0 {
		t.Errorf("%+v", e)
	}
}
