import random, torch, pytest,time
from tests.networks import *
@pytest.mark.parametrize('name', names())
def test_x(name, supernet_of, dense_of):
    t0=time.time()
    s = supernet_of(name); d=dense_of(name)
    t1=time.time()
    x=images(name)
    with torch.no_grad():
        y=s.model(x)
        assert equal(y, d(x))
        t2=time.time()
        r=random.Random(0)
        for i in range(2):
            a=s.space.sample(r)
            e=s.export(a)
            t3=time.time()
            with s.activate(a): y=s.model(x)
            z=e(x)
            print(name, a, equal(y,z), tensors(y)[-1].abs().max(),tensors(y)[-1].std(), [round(v,2) for v in (t1-t0, (t2-t1)/2, t3-t2, time.time()-t3)])
            t2=time.time()
