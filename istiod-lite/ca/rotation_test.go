package ca

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	clienttesting "k8s.io/client-go/testing"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/mesh/identity"
)

// replicas are control planes of one cluster, of which the first leads, in virtual time.
type replicas struct {
	*testing.T
	client  kubernetes.Interface
	secrets typedcorev1.SecretInterface
	ahead   atomic.Int64 // of the clock, in nanoseconds
	keepers []*Keeper
	stop    func()
	samples []sample
}

// sample is what a replica hands out at a time.
type sample struct {
	at      time.Time
	replica int
	chain   []string // of a certificate
	bundle  string
}

var testTimes = Times{Distribution: 5 * time.Minute, Retirement: time.Hour}

// inCluster runs f with two replicas.
func inCluster(t *testing.T, prepare func(r *replicas), f func(r *replicas)) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset()
		r := &replicas{T: t, client: client, secrets: client.CoreV1().Secrets(namespace)}
		prepare(r)
		r.start()
		f(r)
		r.stop()
	})
}

// start runs two replicas, of which the first leads, until stop is called.
func (r *replicas) start() {
	r.Helper()
	ctx, cancel := context.WithCancel(r.Context())
	var running sync.WaitGroup
	for i := range 2 {
		k := r.join()
		running.Go(func() { k.Run(ctx) })
		if i == 0 {
			running.Go(func() { k.Lead(ctx) })
		}
	}
	r.stop = func() {
		cancel()
		running.Wait()
		r.keepers = nil
	}
	r.wait(time.Second)
}

func (r *replicas) now() time.Time { return time.Now().Add(time.Duration(r.ahead.Load())) }

// join makes a replica that starts now, and does not run.
func (r *replicas) join() *Keeper {
	r.Helper()
	k := NewKeeper(KeeperConfig{Client: r.client, Secrets: r.secrets, Organization: func() string { return "cluster.local" }, Times: testTimes,
		Log: slog.New(slog.DiscardHandler), Now: r.now})
	if err := k.Load(r.Context()); err != nil {
		r.Fatal(err)
	}
	r.keepers = append(r.keepers, k)
	return k
}

func (r *replicas) wait(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// put stores a secret, whether or not it is there.
func (r *replicas) put(name string, data map[string][]byte) {
	r.Helper()
	s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace}, Data: data}
	_, err := r.secrets.Create(r.Context(), s, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		_, err = r.secrets.Update(r.Context(), s, metav1.UpdateOptions{})
	}
	if err != nil {
		r.Fatal(err)
	}
	r.wait(time.Second)
}

// expect checks, for all replicas and one that starts now, whose certificate signs and how many roots are handed out.
func (r *replicas) expect(when string, signer string, roots int) {
	r.Helper()
	started := r.join()
	r.keepers = r.keepers[:len(r.keepers)-1]
	for i, k := range append(r.keepers[:len(r.keepers):len(r.keepers)], started) {
		a := k.Authority()
		if a.fingerprint() != signer || len(a.bundle) != roots {
			r.Errorf("%s, replica %d: signed by %.8s with %d roots, want %.8s with %d", when, i, a.fingerprint(), len(a.bundle), signer, roots)
		}
	}
}

// watch takes samples for a time.
func (r *replicas) watch(d time.Duration) {
	r.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		r.Fatal(err)
	}
	id := identity.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "web"}
	for end := time.Now().Add(d); time.Now().Before(end); r.wait(30 * time.Second) {
		for i, k := range r.keepers {
			chain, err := k.Authority().Sign(key.Public(), id, time.Hour, r.now())
			if err != nil {
				r.Fatal(err)
			}
			r.samples = append(r.samples, sample{r.now(), i, chain, k.Authority().Roots()})
		}
	}
}

// seamless checks that every certificate is verified, for its whole life, by whoever has a bundle that was handed out at the
// time or later, or before by less than a distribution takes.
func (r *replicas) seamless() {
	r.Helper()
	for _, cert := range r.samples {
		for _, verifier := range r.samples {
			if verifier.at.Before(cert.at.Add(-testTimes.Distribution+time.Minute)) || verifier.at.After(cert.at.Add(time.Hour-time.Minute)) {
				continue
			}
			roots, between := x509.NewCertPool(), x509.NewCertPool()
			roots.AppendCertsFromPEM([]byte(verifier.bundle))
			for _, c := range cert.chain[1 : len(cert.chain)-1] {
				between.AppendCertsFromPEM([]byte(c))
			}
			block, _ := pem.Decode([]byte(cert.chain[0]))
			leaf, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				r.Fatal(err)
			}
			at := cert.at
			if verifier.at.After(at) {
				at = verifier.at
			}
			if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: at,
				KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
				r.Fatalf("certificate of %s by replica %d, bundle of %s by replica %d: %v", cert.at, cert.replica, verifier.at, verifier.replica, err)
			}
		}
	}
}

func (r *replicas) rotationThere() bool {
	r.Helper()
	_, err := r.secrets.Get(r.Context(), api.CARotationSecret, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		r.Fatal(err)
	}
	return err == nil
}

// plugged makes a root and an intermediate under it, as the data of secret cacerts, and the intermediate's fingerprint.
func plugged(t *testing.T, root Material) (map[string][]byte, string) {
	t.Helper()
	pair, err := tls.X509KeyPair(root.Cert, root.Key)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, err := serialNumber()
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "intermediate"}, NotBefore: pair.Leaf.NotBefore, NotAfter: pair.Leaf.NotAfter,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}, pair.Leaf, key.Public(), pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	data := map[string][]byte{keyCert: cert, keyKey: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), keyChain: cert, keyRoots: root.Roots}
	return data, fingerprintOf(t, data)
}

func fingerprintOf(t *testing.T, data map[string][]byte) string {
	t.Helper()
	pair, err := tls.X509KeyPair(data[keyCert], data[keyKey])
	if err != nil {
		t.Fatal(err)
	}
	return (&Authority{cert: pair.Leaf}).fingerprint()
}

func selfSigned(t *testing.T, now time.Time) Material {
	t.Helper()
	m, err := SelfSigned("user", now)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestPluggedRootIsReplaced: another root and intermediate, put in place of the old in one step, is told of first and signs then;
// the old root goes last; and all replicas agree at each moment, also those that start.
func TestPluggedRootIsReplaced(t *testing.T) {
	var old, fresh map[string][]byte
	var oldSigner, freshSigner string
	inCluster(t, func(r *replicas) {
		old, oldSigner = plugged(r.T, selfSigned(r.T, time.Now()))
		fresh, freshSigner = plugged(r.T, selfSigned(r.T, time.Now()))
		r.put(api.PluggedCASecret, old)
	}, func(r *replicas) {
		r.expect("at first", oldSigner, 1)
		r.watch(2 * time.Minute)
		r.put(api.PluggedCASecret, fresh)
		if !r.rotationThere() {
			r.Error("the rotation is not stored")
		}
		r.expect("when the secret was replaced", oldSigner, 2)
		r.watch(testTimes.Distribution - time.Minute)
		r.expect("while the root is told", oldSigner, 2)
		r.wait(time.Minute)
		r.expect("when it was told", freshSigner, 2)
		r.watch(3 * time.Minute)
		r.wait(testTimes.Retirement - 4*time.Minute)
		r.watch(2 * time.Minute)
		r.wait(2 * time.Minute)
		r.expect("when certificates of the old root have ended", freshSigner, 1)
		if r.rotationThere() {
			r.Error("the old key is still stored")
		}
		r.watch(2 * time.Minute)
		r.seamless()
	})
}

// TestChangeOnTheWay: whatever else becomes of the secrets while a rotation runs, nothing is signed under a root that was not told
// for long enough, and no root goes before certificates under it have ended.
func TestChangeOnTheWay(t *testing.T) {
	var old, fresh, again map[string][]byte
	var oldSigner, againSigner string
	prepare := func(r *replicas) {
		root := selfSigned(r.T, time.Now())
		old, oldSigner = plugged(r.T, selfSigned(r.T, time.Now()))
		fresh, _ = plugged(r.T, root)
		again, againSigner = plugged(r.T, root)
		r.put(api.PluggedCASecret, old)
	}
	t.Run("another intermediate while the root is told", func(t *testing.T) {
		inCluster(t, prepare, func(r *replicas) {
			r.watch(2 * time.Minute)
			r.put(api.PluggedCASecret, fresh)
			r.watch(2 * time.Minute)
			r.put(api.PluggedCASecret, again)
			r.expect("when it was replaced again", oldSigner, 2)
			r.watch(testTimes.Distribution)
			r.expect("when the root was told", againSigner, 2)
			r.seamless()
		})
	})
	t.Run("another intermediate before the old root goes", func(t *testing.T) {
		inCluster(t, prepare, func(r *replicas) {
			r.watch(2 * time.Minute)
			r.put(api.PluggedCASecret, fresh)
			r.watch(testTimes.Distribution + time.Minute)
			r.put(api.PluggedCASecret, again)
			r.expect("when the intermediate was replaced", againSigner, 2)
			r.watch(2 * time.Minute)
			r.seamless()
			r.wait(testTimes.Retirement)
			r.expect("when certificates of the old root have ended", againSigner, 1)
		})
	})
	t.Run("the rotation is deleted", func(t *testing.T) {
		inCluster(t, prepare, func(r *replicas) {
			r.put(api.PluggedCASecret, fresh)
			r.watch(2 * time.Minute)
			if err := r.secrets.Delete(r.Context(), api.CARotationSecret, metav1.DeleteOptions{}); err != nil {
				r.Fatal(err)
			}
			r.wait(time.Second)
			if !r.rotationThere() {
				r.Error("the rotation is not stored again")
			}
			r.expect("after the deletion", oldSigner, 2)
			r.watch(testTimes.Distribution)
			signer := r.keepers[0].Authority().fingerprint()
			r.expect("when the root was told", signer, 2)
			if err := r.secrets.Delete(r.Context(), api.CARotationSecret, metav1.DeleteOptions{}); err != nil {
				r.Fatal(err)
			}
			r.wait(time.Second)
			r.expect("after the deletion when the new one signs", signer, 1)
			if r.rotationThere() {
				r.Error("the old key is stored again")
			}
		})
	})
}

// TestReplacedWhileNobodyRuns: a signer that was replaced while there was no control plane is told of first too.
func TestReplacedWhileNobodyRuns(t *testing.T) {
	for _, before := range []string{"plugged", "self-signed"} {
		t.Run(before, func(t *testing.T) {
			inCluster(t, func(r *replicas) {
				if before == "plugged" {
					old, _ := plugged(r.T, selfSigned(r.T, time.Now()))
					r.put(api.PluggedCASecret, old)
				}
			}, func(r *replicas) {
				oldSigner := r.keepers[0].Authority().fingerprint()
				fresh, freshSigner := plugged(r.T, selfSigned(r.T, time.Now()))
				r.watch(2 * time.Minute)
				r.stop()
				r.put(api.PluggedCASecret, fresh)
				r.wait(time.Hour / 4)
				r.start()
				r.expect("when it starts again", oldSigner, 2)
				r.watch(2 * time.Minute)
				r.stop()
				r.start()
				r.expect("when it starts once more", oldSigner, 2)
				r.watch(testTimes.Distribution - 2*time.Minute)
				r.expect("when the root was told", freshSigner, 2)
				r.watch(2 * time.Minute)
				r.stop()

				// Again, with the way to this one not at its end.
				last, lastSigner := plugged(r.T, selfSigned(r.T, time.Now()))
				r.put(api.PluggedCASecret, last)
				r.start()
				r.expect("when it was replaced again", freshSigner, 3)
				r.watch(testTimes.Distribution + time.Minute)
				r.expect("when that root was told", lastSigner, 3)
				r.seamless()
				r.wait(testTimes.Retirement)
				r.expect("when certificates of the others have ended", lastSigner, 1)
				r.stop()
				r.start()
				r.expect("when nothing has changed", lastSigner, 1)
			})
		})
	}
}

// TestSignerCannotBeRead: where the roles are of an older release nothing is known of what signed before, and all else works.
func TestSignerCannotBeRead(t *testing.T) {
	inCluster(t, func(r *replicas) {
		refuse := func(a clienttesting.Action) (bool, runtime.Object, error) {
			name := ""
			switch a := a.(type) {
			case clienttesting.GetAction:
				name = a.GetName()
			case clienttesting.CreateAction:
				name = a.GetObject().(*corev1.Secret).Name
			}
			if name != api.CASignerSecret {
				return false, nil, nil
			}
			return true, nil, apierrors.NewForbidden(corev1.Resource("secrets"), name, errors.New("role"))
		}
		r.client.(*fake.Clientset).PrependReactor("*", "secrets", refuse)
	}, func(r *replicas) {
		old := r.keepers[0].Authority().fingerprint()
		fresh, signer := plugged(r.T, selfSigned(r.T, time.Now()))
		r.put(api.PluggedCASecret, fresh)
		r.expect("when it was replaced", old, 2)
		r.stop()
		r.start()
		r.watch(testTimes.Distribution)
		r.expect("when the root was told", signer, 2)
	})
}

// TestRotationCannotBeStored: it holds in memory, and is tried again with pauses.
func TestRotationCannotBeStored(t *testing.T) {
	var fresh map[string][]byte
	var oldSigner, freshSigner string
	inCluster(t, func(r *replicas) {
		var old map[string][]byte
		old, oldSigner = plugged(r.T, selfSigned(r.T, time.Now()))
		fresh, freshSigner = plugged(r.T, selfSigned(r.T, time.Now()))
		r.put(api.PluggedCASecret, old)
	}, func(r *replicas) {
		var tries atomic.Int64
		r.client.(*fake.Clientset).PrependReactor("create", "secrets", func(clienttesting.Action) (bool, runtime.Object, error) {
			tries.Add(1)
			return true, nil, apierrors.NewForbidden(corev1.Resource("secrets"), api.CARotationSecret, errors.New("quota"))
		})
		if _, err := r.secrets.Update(r.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: api.PluggedCASecret, Namespace: namespace}, Data: fresh},
			metav1.UpdateOptions{}); err != nil {
			r.Fatal(err)
		}
		r.wait(time.Minute)
		if n := tries.Load(); n < 2 || n > 2*int64(time.Minute/writeRetry) {
			r.Errorf("tried %d times in a minute", n)
		}
		for i, k := range r.keepers {
			if a := k.Authority(); a.fingerprint() != oldSigner || len(a.bundle) != 2 {
				r.Errorf("replica %d: signed by %.8s with %d roots", i, a.fingerprint(), len(a.bundle))
			}
		}
		r.wait(testTimes.Distribution)
		if a := r.keepers[0].Authority(); a.fingerprint() != freshSigner {
			r.Errorf("signed by %.8s after the root was told", a.fingerprint())
		}
	})
}

// TestPluggedIntermediateIsReplaced: one under the same root signs at once. A root that is added or taken away while another
// signs is so at once too: that is the user's word.
func TestPluggedIntermediateIsReplaced(t *testing.T) {
	inCluster(t, func(r *replicas) {}, func(r *replicas) {
		root, other := selfSigned(r.T, time.Now()), selfSigned(r.T, time.Now())
		first, _ := plugged(r.T, root)
		second, signer := plugged(r.T, root)
		r.put(api.PluggedCASecret, first)
		r.wait(testTimes.Distribution + testTimes.Retirement + time.Minute) // from the self-signed root to this one
		r.put(api.PluggedCASecret, second)
		r.expect("another intermediate", signer, 1)
		second[keyRoots] = append(append([]byte{}, root.Cert...), other.Cert...)
		r.put(api.PluggedCASecret, second)
		r.expect("a root more", signer, 2)
		second[keyRoots] = root.Cert
		r.put(api.PluggedCASecret, second)
		r.expect("a root less", signer, 1)
		if r.rotationThere() {
			r.Error("a rotation is stored")
		}
	})
}

// TestSelfSignedRootIsReplaced: by the leader alone, when the user says so and when it nears its end.
func TestSelfSignedRootIsReplaced(t *testing.T) {
	inCluster(t, func(r *replicas) {}, func(r *replicas) {
		own := func() *corev1.Secret {
			s, err := r.secrets.Get(r.Context(), api.CASecret, metav1.GetOptions{})
			if err != nil {
				r.Fatal(err)
			}
			return s
		}
		rotated := func(when string, before string) string {
			r.Helper()
			after := own()
			signer := fingerprintOf(r.T, after.Data)
			if signer == before || after.Annotations[api.AnnotationRotateRoot] != "" {
				r.Fatalf("%s: the root is the same: %v, annotations %v", when, signer == before, after.Annotations)
			}
			r.expect(when, before, 2)
			r.watch(testTimes.Distribution)
			r.wait(time.Minute)
			r.expect(when+", told", signer, 2)
			r.watch(2 * time.Minute)
			r.seamless()
			r.wait(testTimes.Retirement)
			r.expect(when+", later", signer, 1)
			r.samples = nil
			return signer
		}
		secret := own()
		first := fingerprintOf(r.T, secret.Data)
		r.watch(time.Minute)
		secret.Annotations = map[string]string{api.AnnotationRotateRoot: "please"}
		if _, err := r.secrets.Update(r.Context(), secret, metav1.UpdateOptions{}); err != nil {
			r.Fatal(err)
		}
		r.wait(time.Second)
		second := rotated("asked for", first)
		r.ahead.Store(int64(rootTTL / 10 * 7))
		r.wait(2 * rootCheck)
		r.expect("far from its end", second, 1)
		r.ahead.Store(int64(rootTTL / 100 * 81))
		r.wait(2 * time.Hour)
		if third := fingerprintOf(r.T, own().Data); third == second {
			r.Error("a root that nears its end stays")
		}
	})
}

// TestBrokenSecret: what cannot be used changes nothing, and neither do broken revocation lists.
func TestBrokenSecret(t *testing.T) {
	inCluster(t, func(r *replicas) {}, func(r *replicas) {
		root := selfSigned(r.T, time.Now())
		good, signer := plugged(r.T, root)
		r.put(api.PluggedCASecret, good)
		r.wait(testTimes.Distribution + testTimes.Retirement + time.Minute)
		crl := func(want string, there bool) {
			r.Helper()
			for _, k := range r.keepers {
				if text, ok := k.CRL(); text != want || ok != there {
					r.Errorf("revocation lists %q, %v; want %q, %v", text, ok, want, there)
				}
			}
		}
		crl("", false)
		pair, err := tls.X509KeyPair(good[keyCert], good[keyKey])
		if err != nil {
			r.Fatal(err)
		}
		der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour)},
			pair.Leaf, pair.PrivateKey.(*ecdsa.PrivateKey))
		if err != nil {
			r.Fatal(err)
		}
		list := strings.TrimSpace(string(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})))
		for _, step := range []struct {
			text, want string
		}{{list, list}, {"broken", list}, {"", ""}} {
			good[keyCRL] = []byte(step.text)
			r.put(api.PluggedCASecret, good)
			crl(step.want, true)
		}
		broken := map[string][]byte{keyCert: good[keyCert], keyKey: []byte("nothing"), keyRoots: good[keyRoots]}
		r.put(api.PluggedCASecret, broken)
		for _, k := range r.keepers {
			if got := k.Authority().fingerprint(); got != signer {
				r.Errorf("signed by %.8s, want the one before", got)
			}
		}
	})
}
