package ca

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/mesh/identity"
)

// Timing of a Keeper.
const (
	// rootCheck is how often it is looked whether a root nears its end.
	rootCheck = time.Hour
	// writeRetry is the pause after a write that failed.
	writeRetry = 5 * time.Second
)

// KeeperConfig is what a Keeper is made of. All is required but Times and OnChange.
type KeeperConfig struct {
	// Secrets are those of the control plane's namespace, and Client is where they come from.
	Secrets typedcorev1.SecretInterface
	Client  kubernetes.Interface
	// Organization returns the name for roots that are made.
	Organization func() string
	Times        Times
	// OnChange is called after the authority or the revocation lists have changed.
	OnChange func()
	Log      *slog.Logger
	// Now is the clock.
	Now func() time.Time
}

// Keeper keeps the authority in force while its secrets change. Every replica has one; they agree, since each follows the
// same secrets, and only the one that leads writes: the rotation that leads from an old key to a new one, and a new self-signed
// root when the old one nears its end.
//
// A signer that verifiers do not know yet is told of first, for Times.Distribution, and signs then; the root of the one before
// it is handed out for Times.Retirement more. What signs is written down, so that this holds too for a signer that was replaced
// while no replica ran.
type Keeper struct {
	cfg       KeeperConfig
	authority atomic.Pointer[Authority]
	crl       atomic.Pointer[string] // nil: the secret does not speak of any
	leading   atomic.Bool
	wake      chan struct{} // capacity 1

	// Owned by who calls Load, then by Run.
	running *rotation  // as last read from the API server, or planned here and not yet read from there
	stored  bool       // running was there when the API server's secrets were last looked at
	told    string     // what was last said to be wrong
	written *Authority // what this replica has last written down as the signer; nil: nothing
}

// NewKeeper makes a Keeper, which knows nothing yet: see Load.
func NewKeeper(cfg KeeperConfig) *Keeper {
	cfg.Times = cfg.Times.withDefaults()
	return &Keeper{cfg: cfg, wake: make(chan struct{}, 1)}
}

// Authority returns the one in force; nil before Load.
func (k *Keeper) Authority() *Authority { return k.authority.Load() }

// CRL returns the revocation lists of the plugged-in CA, PEM or DER, and whether it speaks of any: empty ones take away what
// was there before.
func (k *Keeper) CRL() (text string, there bool) {
	if p := k.crl.Load(); p != nil {
		return *p, true
	}
	return "", false
}

// Load reads the secrets for the first time, and makes a self-signed root if there is neither that nor a plugged-in CA.
func (k *Keeper) Load(ctx context.Context) error {
	s, err := gather(ctx, k.cfg.Secrets, k.cfg.Organization(), k.cfg.Now())
	if err != nil {
		return err
	}
	_, err = k.settle(ctx, s)
	if err != nil && k.Authority() != nil {
		k.tell(err) // something beside it
		return nil
	}
	return err
}

// Lead has this replica write, until ctx ends.
func (k *Keeper) Lead(ctx context.Context) {
	k.leading.Store(true)
	defer k.leading.Store(false)
	k.poke()
	<-ctx.Done()
}

func (k *Keeper) poke() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// Run follows the secrets until ctx ends. Call it once, after Load.
func (k *Keeper) Run(ctx context.Context) {
	stores := map[string]cache.Store{}
	var synced []cache.InformerSynced
	var informers sync.WaitGroup
	defer informers.Wait()
	for _, name := range []string{api.PluggedCASecret, api.CASecret, api.CARotationSecret} {
		i := k.informer(name)
		stores[name] = i.GetStore()
		synced = append(synced, i.HasSynced)
		informers.Go(func() { i.RunWithContext(ctx) })
	}
	if !cache.WaitForCacheSync(ctx.Done(), synced...) {
		return
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		// One of three things happens: a secret has changed or this replica leads now, it is time, or the end.
		select {
		case <-k.wake:
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		next, err := k.settle(ctx, k.read(stores))
		k.tell(err)
		pause := rootCheck
		if !next.IsZero() {
			pause = min(pause, max(next.Sub(k.cfg.Now()), 0))
		}
		if err != nil {
			pause = min(pause, writeRetry)
		}
		timer.Reset(pause)
	}
}

// tell logs what is wrong, once.
func (k *Keeper) tell(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != "" && text != k.told {
		k.cfg.Log.Error("certificate authority: what was there before stays in force", "cause", err)
	}
	k.told = text
}

// read takes the secrets out of the informers' stores.
func (k *Keeper) read(stores map[string]cache.Store) *sources {
	get := func(name string) *corev1.Secret {
		for _, o := range stores[name].List() {
			if s := o.(*corev1.Secret); s.Name == name {
				return s
			}
		}
		return nil
	}
	return &sources{plugged: get(api.PluggedCASecret), own: get(api.CASecret), rotation: get(api.CARotationSecret)}
}

// settle puts in force what the secrets say now, and returns when to look again; zero for no certain time. On an error what
// was in force stays, as far as the secrets cannot be understood.
func (k *Keeper) settle(ctx context.Context, s *sources) (next time.Time, err error) {
	now := k.cfg.Now()
	crlErr := k.takeCRL(s)
	target, err := s.target(now)
	if err != nil {
		return time.Time{}, err
	}
	way, wayErr := k.way(ctx, s, target, now)
	a := target
	if way != nil {
		if a, next, err = way.inForce(target.material, now); err != nil {
			return time.Time{}, err
		}
	}
	k.put(a)
	var signerErr error
	if k.leading.Load() {
		if wayErr == nil {
			signerErr = k.writeSigner(ctx, a)
		}
		if err := k.maintain(ctx, s, target, way, now); err != nil {
			return next, err
		}
	}
	return next, errors.Join(wayErr, signerErr, crlErr)
}

// writeSigner writes down what signs, and all roots that are handed out with it, once.
func (k *Keeper) writeSigner(ctx context.Context, a *Authority) error {
	if a.same(k.written) {
		return nil
	}
	if err := k.store(ctx, a.material.secret(api.CASignerSecret)); err != nil {
		return err
	}
	k.written = a
	return nil
}

// signing returns what signs: here, or when it was last written down; nil if nothing is known to have.
func (k *Keeper) signing(s *sources, now time.Time) *Authority {
	if a := k.Authority(); a != nil || s.signer == nil {
		return a
	}
	a, err := authorityOf(s.signer, now)
	if err != nil {
		k.cfg.Log.Error("what signed before cannot be used; if it was replaced meanwhile, certificates under it are refused", "cause", err)
		return nil
	}
	return a
}

// way returns the rotation that leads to target; nil if it simply is in force. With an error it could not be stored, and holds
// here all the same.
func (k *Keeper) way(ctx context.Context, s *sources, target *Authority, now time.Time) (*rotation, error) {
	if s.rotation != nil {
		r, err := rotationOf(s.rotation)
		if err != nil {
			k.cfg.Log.Error("the CA's rotation cannot be read, as if there were none", "cause", err)
		} else if r.Next == target.fingerprint() {
			k.running, k.stored = r, true
			return r, nil
		} else if k.running == nil || k.running.Next != target.fingerprint() {
			k.running = r // the one that is planned here, if there is, takes its place once it is stored
		}
	}
	// Who deletes it once the new key signs wants the old root gone; before that it is stored again.
	deleted := s.rotation == nil && k.stored && k.running != nil && !now.Before(k.running.ActivateAt)
	if k.running != nil && !now.Before(k.running.RetireAt) || deleted {
		k.running = nil
	}
	k.stored = false
	if k.running == nil || k.running.Next != target.fingerprint() {
		current := k.signing(s, now)
		if current == nil || current.cert.Equal(target.cert) {
			k.running = nil
			return nil, nil
		}
		if k.running = k.plan(current, target, now); k.running == nil {
			return nil, nil
		}
		k.cfg.Log.Info("another signing certificate: its root is told to verifiers first", "signs from", k.running.ActivateAt,
			"old root goes at", k.running.RetireAt, "fingerprint", k.running.Next)
	}
	if !k.leading.Load() {
		return k.running, nil
	}
	return k.running, k.write(ctx, k.running)
}

// plan returns the way from a signer to another. Where one is running already, it takes over what that one has promised: a root
// that is being told is told to the end before anything is signed under it, and no root goes before its time.
func (k *Keeper) plan(from, to *Authority, now time.Time) *rotation {
	way := planRotation(from, to, k.cfg.Times, now)
	if k.running == nil {
		return way
	}
	if way == nil {
		way = &rotation{schedule: schedule{Next: to.fingerprint(), ActivateAt: now.UTC().Truncate(time.Second)}, previous: from.material}
	}
	if now.Before(k.running.ActivateAt) && !k.running.knew(to, now) {
		way.ActivateAt = later(way.ActivateAt, k.running.ActivateAt)
	}
	way.RetireAt = later(way.RetireAt, k.running.RetireAt)
	return way
}

func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

// write stores a rotation for the other replicas, and for this one after a restart.
func (k *Keeper) write(ctx context.Context, r *rotation) error {
	secret, err := r.secret()
	if err != nil {
		return err
	}
	return k.store(ctx, secret)
}

// store writes a secret, whether or not it is there.
func (k *Keeper) store(ctx context.Context, secret *corev1.Secret) error {
	_, err := k.cfg.Secrets.Create(ctx, secret, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		_, err = k.cfg.Secrets.Update(ctx, secret, metav1.UpdateOptions{})
	}
	if err != nil {
		return fmt.Errorf("write secret %s: %w", secret.Name, err)
	}
	return nil
}

// maintain ends a rotation that is over, and begins one where a self-signed root is due.
func (k *Keeper) maintain(ctx context.Context, s *sources, target *Authority, way *rotation, now time.Time) error {
	if r, err := rotationOf(s.rotation); err == nil && !now.Before(r.RetireAt) {
		err := k.cfg.Secrets.Delete(ctx, api.CARotationSecret, metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("delete secret %s: %w", api.CARotationSecret, err)
		}
		return nil
	}
	if s.plugged != nil || way != nil && now.Before(way.ActivateAt) {
		return nil
	}
	if rootIsDue(s.own, target, now) == "" {
		return nil
	}
	// The watch may be behind; what was replaced already must not be again.
	own, err := k.cfg.Secrets.Get(ctx, api.CASecret, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("replace the root: %w", err)
	}
	there, err := authorityOf(own, now)
	if err != nil || !there.cert.Equal(target.cert) {
		return err
	}
	why := rootIsDue(own, target, now)
	if why == "" {
		return nil
	}
	m, err := SelfSigned(k.cfg.Organization(), now)
	if err != nil {
		return err
	}
	fresh, err := NewAuthority(m, now)
	if err != nil {
		return err
	}
	// First the way, then the goal: whoever sees the new root knows when to use it.
	current := k.Authority()
	if err := k.write(ctx, k.plan(current, fresh, now)); err != nil {
		return err
	}
	delete(own.Annotations, api.AnnotationRotateRoot)
	own.Data = map[string][]byte{keyCert: m.Cert, keyKey: m.Key, keyRoots: m.Roots}
	if _, err := k.cfg.Secrets.Update(ctx, own, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("replace the root in secret %s: %w", own.Name, err)
	}
	k.cfg.Log.Info("the self-signed root is replaced", "why", why, "fingerprint", fresh.fingerprint())
	return nil
}

// put takes an authority into force.
func (k *Keeper) put(a *Authority) {
	if old := k.Authority(); a.same(old) {
		return
	}
	k.authority.Store(a)
	k.cfg.Log.Info("certificate authority in force", "signer", a.cert.Subject.String(), "fingerprint", a.fingerprint(), "roots", len(a.bundle), "until", a.NotAfter())
	k.changed()
}

// takeCRL takes the revocation lists of the plugged-in CA. What cannot be read leaves those that were there.
func (k *Keeper) takeCRL(s *sources) error {
	text, there := s.crl()
	if !there {
		return nil
	}
	if _, err := identity.ParseCRL(text, false); err != nil {
		return fmt.Errorf("secret %s: %s: %w", api.PluggedCASecret, keyCRL, err)
	}
	next := string(text)
	if old := k.crl.Swap(&next); old == nil || *old != next {
		k.changed()
	}
	return nil
}

func (k *Keeper) changed() {
	if k.cfg.OnChange != nil {
		k.cfg.OnChange()
	}
}

// informer follows one secret.
func (k *Keeper) informer(name string) cache.SharedIndexInformer {
	selector := fields.OneTermEqualSelector(metav1.ObjectNameField, name).String()
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, opts metav1.ListOptions) (runtime.Object, error) {
			opts.FieldSelector = selector
			return k.cfg.Secrets.List(ctx, opts)
		},
		WatchFuncWithContext: func(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error) {
			opts.FieldSelector = selector
			return k.cfg.Secrets.Watch(ctx, opts)
		},
	}
	i := cache.NewSharedIndexInformerWithOptions(cache.ToListWatcherWithWatchListSemantics(lw, k.cfg.Client), &corev1.Secret{}, cache.SharedIndexInformerOptions{})
	poke := func(any) { k.poke() }
	i.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: poke, UpdateFunc: func(_, _ any) { k.poke() }, DeleteFunc: poke})
	return i
}
